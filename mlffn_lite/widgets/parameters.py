"""The explorer of the generators of pseudo-anomalies: every parameter a slider."""

from __future__ import annotations

import html
from typing import Any

import ipywidgets as w  # type: ignore[import-untyped]
import numpy as np
import torch
from torch import Tensor

from .. import registry
from ..canvas import Canvas
from ..datasets.folder import Split
from .controls import Explorer, dropdown, row, seed, slider
from .panels import Panel, Scene
from .views import as_bytes


class PseudoExplorer(Explorer):
    """Move the parameters of the generators of pseudo-anomalies (§2.1) and watch images and masks change.

    Parameters
    ----------
    images : Tensor or Split
        Good images, (B, 3, H, W), uint8 or in [0, 1].
    count : int
        How many are shown, the first ones.

    Attributes
    ----------
    kind : Dropdown
        Name of a kind of this library, see :func:`mlffn_lite.registry.names`.
    seed : BoundedIntText
    parameters : dict of dict
        By kind, the sliders of its generator's parameters by their names.
    generator : PseudoAnomaly
        As the sliders say; the table shows the Python that makes it.
    images, masks : Tensor
        Its output, (B, 3, H, W) and (B, 1, H, W).
    """

    def __init__(self, images: Tensor | Split, *, count: int = 6) -> None:
        self._good = (images.images() if isinstance(images, Split) else images)[:count]
        if not len(Canvas(self._good).images):
            raise ValueError("there is no image to show")
        self.kind = dropdown("Kind", list(_LIMITS), "Kind of pseudo-anomaly")
        self.seed = seed()
        self.parameters: dict[str, dict[str, w.Widget]] = {}
        for kind, limits in _LIMITS.items():
            start = registry.find("kinds", kind)()
            self.parameters[kind] = {n: slider(n, limit, getattr(start, n), _MEANS[n]) for n, limit in limits.items()}
        self._sliders = row()
        super().__init__(row(self.kind, self.seed), self._sliders)
        self.kind.observe(self._swap, "value")
        self._watch(self.seed, *(s for sliders in self.parameters.values() for s in sliders.values()))
        self._swap()

    def _swap(self, _: Any = None) -> None:
        self._sliders.children = tuple(self.parameters[self.kind.value].values())
        self._changed()

    def redraw(self) -> None:
        """Synthesise with the parameters as they stand, and draw each image above its mask."""
        values = {name: slider.value for name, slider in self.parameters[self.kind.value].items()}
        self.generator = registry.find("kinds", self.kind.value)(**values)
        self.images, self.masks = self.generator(self._good, generator=torch.Generator().manual_seed(self.seed.value))
        shares = self.masks.float().mean((1, 2, 3))
        panels: list[Panel] = []
        for image, mask, share in zip(as_bytes(self.images), self.masks[:, 0].numpy(), shares, strict=True):
            scene = Scene(image.numpy(), mask, side=136)
            area = 255 * scene.enlarge(mask)[..., None].astype(np.uint8).repeat(3, axis=2)
            line = np.full((4, area.shape[1], 3), 255, np.uint8)
            panels.append(Panel(f"{len(panels) + 1}: {share:.1%}", np.concatenate((scene.photo(False), line, area))))
        text = (
            f"{self.kind.value}: {shares.mean():.1%} of the pixels changed, {shares.min():.1%} to {shares.max():.1%}."
        )
        alt = f"{len(panels)} images with pseudo-anomalies, each above its mask, white where it changed. {text}"
        call = f"{type(self.generator).__name__}({', '.join(f'{k}={_rounded(v)}' for k, v in values.items())})"
        self._publish(text, alt, panels, f"<code>{html.escape(call)}</code>")


# Least, most and step of the parameters that are shown; to begin with they are what the generators have.
_PIXEL = 1 / 256
_LIMITS: dict[str, dict[str, tuple[float, float, float]]] = {
    "confetti": {
        "count": (1, 8, 1),
        "side": (2 * _PIXEL, 100 * _PIXEL, 2 * _PIXEL),
        "rotation": (0, 90, 5),
        "blur": (0, 24 * _PIXEL, _PIXEL),
        "dark": (0, 1, 0.05),
    },
    "cutpaste": {"area": (0.01, 0.3, 0.01), "aspect": (0.1, 8, 0.1), "rotation": (0, 90, 5), "jitter": (0, 0.5, 0.05)},
    "scar": {
        "width": (_PIXEL, 48 * _PIXEL, _PIXEL),
        "length": (_PIXEL, 100 * _PIXEL, _PIXEL),
        "rotation": (0, 90, 5),
        "jitter": (0, 0.5, 0.05),
    },
    "blemish": {
        "count": (1, 8, 1),
        "length": (4 * _PIXEL, 1, 4 * _PIXEL),
        "aspect": (1, 20, 0.5),
        "contrast": (0.02, 1, 0.02),
        "grey": (0, 1, 0.05),
    },
}
_MEANS = {
    "count": "Fewest and most shapes per image",
    "side": "Side of a square, in image sides",
    "rotation": "Largest rotation in degrees, either way",
    "blur": "Standard deviation of the blur, in image sides",
    "dark": "Probability that a square is black",
    "area": "Share of the image that is pasted",
    "aspect": "Height over width, or long over short axis",
    "jitter": "How much brightness, contrast, saturation and hue of the copy may change",
    "width": "Short side, in image sides",
    "length": "Long side or axis, in image sides",
    "contrast": "Largest change of a channel",
    "grey": "Probability that all channels change alike",
}


def _rounded(value: Any) -> str:
    return f"({', '.join(map(_rounded, value))})" if isinstance(value, tuple) else f"{value:.4g}"
