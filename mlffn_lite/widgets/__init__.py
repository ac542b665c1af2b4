"""Explorers of heatmaps for notebooks: one detector, or two runs side by side.

Each is a box of controls, a line of text (``label``), panels of a picture, what the threshold does to the whole set
(``overall``, a histogram, thumbnails) and a table, without an ``Output`` widget: controls are set, and the outcome is
read, by code as well as by hand, so an explorer works and is tested without a browser. Whatever the pointer does on a
picture, a control does too. The text alternative, ``alt``, is the accessible name of the last panel in the browser and
the field Description of ``png``.

>>> explorer = HeatmapExplorer(detector, folder.test)
>>> explorer.picker.select("hole/003")
>>> explorer.threshold.value = 2.0
>>> explorer.label.value, explorer.anomalous, explorer.regions
>>> explorer.picker.filter.value = "misses"
>>> explorer.overall.value, explorer.picker.listed
>>> explorer.save_verdicts("verdicts.csv")
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
