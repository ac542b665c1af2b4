"""Explorers of heatmaps for notebooks: one detector, or two runs side by side.

Each is a box of controls, a line of text (``label``), a picture and a table, without an ``Output`` widget: controls are
set, and the outcome is read, by code as well as by hand, so an explorer works and is tested without a browser. A
picture's text alternative, ``alt``, is its accessible name in the browser and the field Description of its PNG.

>>> explorer = HeatmapExplorer(detector, folder.test)
>>> explorer.picker.select("hole/003")
>>> explorer.threshold.value = 2.0
>>> explorer.label.value, explorer.anomalous, explorer.regions
"""

from __future__ import annotations

from ..decision import Region, find_regions
from .controls import Explorer, ImagePicker
from .heatmaps import HeatmapExplorer
from .runs import RunComparison
from .views import Verdicts, write_verdicts

__all__ = [
    "Explorer",
    "HeatmapExplorer",
    "ImagePicker",
    "Region",
    "RunComparison",
    "Verdicts",
    "find_regions",
    "write_verdicts",
]
