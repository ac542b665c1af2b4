"""What explorers show: a split with scores and the colours for them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from torch import Tensor

from ..datasets.folder import Split
from ..detector import AnomalyDetector, Calibration, Prediction, fitted
from .panels import Scene

Source = AnomalyDetector | Prediction

OPACITY = "Opacity of the hottest colours over the image"


class View:
    """A split with its prediction, and with colours and threshold to show it."""

    def __init__(self, source: Source, split: Split, calibration: Calibration | None) -> None:
        if not len(split):
            raise ValueError("the split holds no image")
        found = source.predict_split(split) if isinstance(source, AnomalyDetector) and fitted(source) else source
        assert isinstance(found, Prediction)
        if found.maps.shape != (len(split), *split.shape) or found.scores.shape != (len(split),):
            wanted = (len(split), *split.shape)
            raise ValueError(f"the split needs maps {wanted} and a score each, got {tuple(found.maps.shape)}")
        if not (found.maps.isfinite().all() and found.scores.isfinite().all()):
            raise ValueError("the prediction holds scores that are not finite")
        good = split.labels() == 0
        if calibration is None and isinstance(source, Prediction) and not good.any():
            raise ValueError("the split has no good image to take colours and threshold from; give a calibration")
        if calibration is None:
            good_ones = Prediction(found.maps[good], found.scores[good])
            calibration = fitted(source) if isinstance(source, AnomalyDetector) else Calibration.from_good(good_ones)
        self.split, self.prediction, self.calibration = split, found, calibration
        self.scene = lru_cache(8)(self._scene)

    def known(self, index: int) -> bool:
        """Say whether it is known where this image is defective."""
        return bool(self.split.has_mask[index])

    def heat(self, index: int) -> np.ndarray:
        """Return the score map of an image."""
        return self.prediction.maps[index].numpy()

    def score(self, index: int) -> float:
        """Return the score of an image."""
        return float(self.prediction.scores[index])

    def _scene(self, index: int) -> Scene:
        image, mask = self.split.batch([index])
        return Scene(image[0].numpy(), mask[0].numpy(), self.heat(index))


def as_bytes(images: Tensor) -> Tensor:
    """Return images in [0, 1] as uint8."""
    return (255 * images).round().byte()


def word(anomalous: bool) -> str:
    """Return the verdict as a word."""
    return "anomalous" if anomalous else "good"
