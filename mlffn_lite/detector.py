"""What every method can do: fit, score, evaluate, save, load; :class:`AnomalyDetector` is the door to all of them."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import metrics, registry
from .config import Config
from .datasets.folder import Split, few
from .datasets.sources import Parts, iterate_batches, open_source
from .datasets.view import View
from .decision import Rule, decision_rates, promise_of, promised_threshold
from .devices import autocast_dtype, resolve_device
from .errors import CheckpointError, ConfigError, DataError, TrainingError, first_line
from .evaluation import by_defect, defined, write_measured
from .layers import normal_range
from .ownership import own
from .state import CheckpointState, Finite, Source, checked
from .storage import (
    CHECKPOINT,
    CONFIG,
    HISTORY,
    METRICS,
    environment,
    history_csv,
    history_digest,
    load_tensors,
    new_run,
    read_config,
    read_history,
    read_sealed,
    save_tensors,
    write_atomic,
    write_config,
)
from .streamed import PixelMetrics
from .tiles import TiledSplit, Tiles

PREDICT_BATCH = 16
CALIBRATION_IMAGES = 256
"""Good training images, at most, that colours and threshold are taken from, evenly spread over the set."""
MAPS_BYTES = 1 << 30
"""Memory for the score maps of one evaluation; those of more images are not kept."""
TRIAL_PIXELS = 1 << 26
"""Pixels, at most, of an image that a detector from a file scores at once."""
FEWEST_GOOD = 10
"""Good images from which on a threshold says something."""

RULE = ("threshold", "min_area", "min_peak")
"""What a calibration decides by, and a result names."""
CALIBRATION_PIXELS = 1 << 25
"""Of their stitched maps, about so many pixels are kept."""
BATCH_PIXELS = 1 << 24
"""Of images in memory at a time, about, however large they are."""


class Prediction(NamedTuple):
    """Scores of a batch, on the CPU.

    Attributes
    ----------
    maps : Tensor
        Score of every input pixel, (B, H, W), float32; higher is more anomalous, the unit is the network's own.
    scores : Tensor
        Score of every image, (B,): the maximum of its map (§2.6).
    """

    maps: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Calibration:
    """What scores of the good training images look like, to colour heatmaps and to call an image anomalous.

    Attributes
    ----------
    low, high : float
        Colour scale: the median pixel score, and a score well above nearly all good pixels, so that good images look
        cold on every heatmap.
    threshold : float
        Image score above which an image is called anomalous.
    scores : tuple of float
        Scores of the good images that it is judged by, ascending.
    source : str
        Which these are: ``"training"`` images, which score lower than new ones do; training images each ``"left out"``
        of what it was scored by; or ``"held out"`` ones.
    min_area, min_peak : int, float or None
        What a region above the threshold must have to count, see :class:`~mlffn_lite.decision.Rule`.

    Raises
    ------
    ValueError
        If a value is not finite, colours have no span, or scores do not ascend.
    """

    low: Finite
    high: Finite
    threshold: Finite
    scores: tuple[Finite, ...] = ()
    source: Source = "training"
    min_area: int = 0
    min_peak: Finite | None = None

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        numbers = (
            self.low,
            self.high,
            self.threshold,
            *self.scores,
            *([] if self.min_peak is None else [self.min_peak]),
        )
        if not all(map(math.isfinite, numbers)):
            raise ValueError("a threshold, a colour or a score is not finite")
        if self.low >= self.high or self.min_area < 0:
            raise ValueError("the ends of the colours do not ascend, or the smallest area is negative")
        if any(a > b for a, b in itertools.pairwise(self.scores)):
            raise ValueError("the scores of good images do not ascend")

    @classmethod
    def from_good(cls, prediction: Prediction, *, margin: float = 0.0, source: Source = "training") -> Calibration:
        """Derive the scale from the scores of good images.

        ``high`` lies twice as far above the median as the 99.9th percentile of the pixels, or by ``margin`` if that is
        more: where the score was trained to rise by λ on anomalies, λ is the scale on which differences show.
        ``threshold`` is the 99th percentile of the image scores.
        """
        if not torch.isfinite(prediction.maps).all():
            raise TrainingError(
                "the trained network gives scores that are not finite; lower train.lr or set train.clip"
            )
        low, top = map(float, normal_range(prediction.maps))
        threshold = float(prediction.scores.quantile(0.99))
        scores = tuple(sorted(prediction.scores.tolist()))
        return cls(low, low + max(2 * (top - low), margin, 1e-6), threshold, scores, source)

    @property
    def rule(self) -> Rule:
        """When an image is called anomalous."""
        return Rule(self.threshold, self.min_area, -math.inf if self.min_peak is None else self.min_peak)

    @property
    def promise(self) -> float:
        """Largest probability of a false alarm on a new good image; NaN where training images cannot tell."""
        return promise_of(self.scores, self.threshold) if self.source != "training" and self.scores else math.nan

    @property
    def doubt(self) -> str:
        """Why the threshold says little; empty where nothing speaks against it."""
        if len(self.scores) < FEWEST_GOOD:
            return f"it rests on {len(self.scores)} good images, fewer than {FEWEST_GOOD}: calibrate on more"
        if self.scores[0] == self.scores[-1]:
            return "all good images have the same score, as constant images do: fit to real ones"
        return ""

    def warn(self) -> None:
        """Warn if the threshold says little."""
        if self.doubt:
            warnings.warn(f"the threshold cannot be trusted: {self.doubt}", stacklevel=3)

    def describe(self) -> str:
        """Return threshold, rule and promise in words."""
        rule = f"threshold {self.threshold:.4g}" + f" ({self.rule.demands})" * bool(self.rule.demands)
        rule += f", not to be trusted ({self.doubt})" * bool(self.doubt)
        if math.isnan(self.promise):
            return (
                f"{rule}; no promise, as training images score lower than new ones: calibrate on held-out good images"
            )
        return (
            f"{rule}; at most {100 * self.promise:.2g} % false alarms, by {len(self.scores)} {self.source} good images"
        )


class AnomalyDetector:
    """A method of anomaly detection for one category of parts: fitted to good images, it scores any image.

    ``AnomalyDetector(config)`` gives the class of the method that the configuration names, as ``pathlib.Path`` gives
    that of the system. A method of one's own is a subclass that says how it is fitted (:meth:`_fit`), how it scores a
    batch (:meth:`_score`), and which tensors are its memory (:meth:`_tensors`, :meth:`_restore`); all else is shared,
    so that methods are compared like for like.

    Parameters
    ----------
    config : Config
        For example ``Config.preset("parts")``. Its ``method`` becomes that of the class, where that is called itself.
    **options
        What the method's class takes besides, such as ``network`` of :class:`~mlffn_lite.mlffn.MLFFNDetector`.

    Attributes
    ----------
    method : str
        Name of the method in files, tables and on the command line.
    shape : (int, int)
        Height and width that every image is brought to: those of the images it was fitted to.
    view : View
        What of every photograph it looks at: ``data.crop`` and ``data.ignore``, as they were when it was fitted.
    calibration : Calibration or None
        Present once fitted.
    history : DataFrame
        What was logged in training; empty where nothing is trained.
    step : int
        Optimiser steps done; 0 where nothing is trained.
    seconds : float
        Time that fitting took.

    Examples
    --------
    >>> detector = AnomalyDetector(Config.preset("parts")).fit("data/miniparts/weave")
    >>> maps, scores = detector.predict("new_images")
    """

    trains: ClassVar[bool] = False
    """Whether fitting takes optimiser steps, which can be interrupted and resumed."""

    parts: int = 1
    """Maps that its score is made of, which an ensemble weighs one by one."""

    leaves_out: bool = False
    """Whether :meth:`_score_left_out` scores training images as if they had not been fitted to."""

    def __new__(cls, config: Config, *arguments: Any, **options: Any) -> Self:
        """Choose the class: that of ``config.method`` where none is named."""
        if cls is not AnomalyDetector:
            return super().__new__(cls)
        found = registry.find("methods", config.method)
        if not (isinstance(found, type) and issubclass(found, AnomalyDetector)):
            raise ConfigError(f"method {config.method!r} is no subclass of mlffn_lite.AnomalyDetector")
        return super().__new__(found)  # type: ignore[return-value]

    def __init__(self, config: Config, **options: Any) -> None:
        if options:
            raise TypeError(f"method {config.method} takes no {', '.join(options)}")
        own = registry.name_of("methods", type(self))
        self.config = config if config.method == own else config.replace(method=own)
        self.device = resolve_device(config.train.device)
        self.shape, self.view = (config.data.size, config.data.size), View()
        self.calibration: Calibration | None = None
        self.history = pd.DataFrame()
        self.step, self.seconds = 0, 0.0
        self.rank = 0  # among the processes that train together; the first writes
        self._data, self._run_id = "", new_run()

    @property
    def method(self) -> str:
        """Name of the method in files, tables and on the command line."""
        return self.config.method

    @property
    def run_id(self) -> str:
        """Id of the run that it was fitted in, 32 hexadecimal digits, which its files carry."""
        return self._run_id

    def fit(self, source: Any, *, out: str | Path | None = None, progress: bool = True, resume: bool = False) -> Self:
        """Fit, from the beginning, to good images, calibrate on them; returns self.

        Parameters
        ----------
        source : path, images or data set
            A folder, or anything that :func:`~mlffn_lite.datasets.sources.open_source` takes; its training images.
        out : path, optional
            Run folder; without it nothing is written.
        progress : bool
            Show a progress bar.
        resume : bool
            Go on with the run in ``out``; one that is finished is read.

        Raises
        ------
        DataError
            If the source has no good image, or was opened with another size or aspect than the configuration's.
        CheckpointError
            If ``out`` holds a run, without ``resume``; or one that is damaged or of another configuration or data.
        """
        parts = self.open(source)
        if not len(parts.train):
            raise DataError("there is no good image to fit to; give unlabelled images, or some labelled good")
        self.shape, self.view = parts.shape, parts.view
        run = Path(out) if out is not None else None
        with contextlib.nullcontext() if run is None else own(run):
            self._fit_and_save(parts, run, progress, resume)
        fitted(self).warn()
        return self

    def _fit_and_save(self, parts: Parts, run: Path | None, progress: bool, resume: bool) -> None:
        self._run_id = new_run()
        if run is not None:
            self._data = parts.fingerprint(test=False)
            if (run / CHECKPOINT).exists() and not resume:
                raise CheckpointError(f"{run} holds a run already; resume it or train into another folder")
            if (run / CHECKPOINT).exists() and self._take_over(run, resume=True):
                return
        train = TiledSplit(parts.train, self.tiles) if self.tiles else parts.train
        seconds = self._fit(train, run=run, progress=progress, resume=resume)
        started = time.perf_counter()
        self._calibrate(train)
        if self.tiles:
            self._calibrate_stitched(parts.train)
        if parts.validation:
            self.calibrate(parts.validation)
        self.seconds = seconds + time.perf_counter() - started
        if run is not None and self.rank == 0:
            self.save(run)

    def _fit(self, train: Split, *, run: Path | None, progress: bool, resume: bool) -> float:
        """Fit to a split of good images; returns the seconds it took, earlier parts of a resumed run included."""
        raise NotImplementedError

    def _score(self, images: Tensor) -> Tensor:
        """Return score maps (B, H, W), float32, of images (B, 3, H, W) float in [0, 1], both on the device.

        Called in inference mode, in float32, with channels-last images, one or always as many at a time.
        """
        raise NotImplementedError

    def _score_left_out(self, images: Tensor, numbers: Tensor) -> Tensor:
        """As :meth:`_score`, of images that it was fitted to: each as if it had not been, where the method can.

        ``numbers`` (B,) are their places in the training set.
        """
        return self._score(images)

    def held_out(self, images: int) -> Tensor | None:
        """Return the places (n,), of so many training images, that are not fitted to, to calibrate on; here None."""
        return None

    def _held(self, train: Split) -> Tensor | None:
        """Return the places (n,) in a split of what :meth:`held_out` names: of all tiles of an image, where it has."""
        count = len(self.tiles.places) if self.tiles else 1
        held = self.held_out(len(train) // count)
        return None if held is None else (held[:, None] * count + torch.arange(count)).flatten()

    def _tensors(self) -> dict[str, Tensor]:
        """Return everything that fitting learned."""
        raise NotImplementedError

    def _restore(self, tensors: dict[str, Tensor], path: Path) -> None:
        """Take over what :meth:`_tensors` returned, read from the file ``path``; raises CheckpointError on a misfit."""
        raise NotImplementedError

    @torch.inference_mode()
    def predict(self, images: Any) -> Prediction:
        """Score images.

        Parameters
        ----------
        images : path, Tensor, array, PIL image, Dataset, or several
            A folder, image files, or pixels, see :func:`~mlffn_lite.datasets.sources.iterate_batches`.

        Returns
        -------
        Prediction
            Maps at the fitted size, :attr:`shape`, which all images are brought to: of what :attr:`view` lets see of
            them. At ignored pixels stands the lowest score of the others.

        Raises
        ------
        DataError
            If a file cannot be read, or pixels have another shape, type or range.
        """
        found = iterate_batches(images, self.shape, batch_size(self.shape), self.view)
        parts = [self.view.quiet(self._run_whole(batch, self._score).cpu()) for batch in found]
        maps = torch.cat(parts) if parts else torch.zeros(0, *self.shape)
        return Prediction(maps, maps.flatten(1).amax(1) if len(maps) else torch.zeros(0))

    def calibrate(
        self,
        good: Any = None,
        *,
        false_alarms: float | None = None,
        threshold: float | None = None,
        min_area: int | None = None,
        min_peak: float | None = None,
    ) -> Calibration:
        """Choose when an image is called anomalous; colours stay as they are.

        Parameters
        ----------
        good : images, optional
            Good images that it was not fitted to, as :meth:`predict` takes them; without, the scores of earlier ones.
        false_alarms : float, optional
            Probability of a false alarm on a new good image, at most; 0.01 where images but no threshold are given.
        threshold : float, optional
            Instead of that.
        min_area, min_peak : optional
            What a region above the threshold must have to count; both make alarms rarer, never more frequent.

        Returns
        -------
        Calibration
            It is also :attr:`calibration` from now on. Its ``promise`` says what these images can promise.

        Raises
        ------
        ConfigError
            If a value is out of range, or both of two are given.
        DataError
            If there is no image.
        TrainingError
            If scores are not finite.
        """
        old = fitted(self)
        if false_alarms is not None and threshold is not None:
            raise ConfigError("give a rate of false alarms or a threshold, not both")
        if false_alarms is not None and not 0 < false_alarms < 1:
            raise ConfigError(f"a rate of false alarms of {false_alarms} must lie between 0 and 1, such as 0.01")
        if not all(math.isfinite(x) for x in (threshold, min_peak) if x is not None) or (min_area or 0) < 0:
            raise ConfigError("threshold and smallest peak must be finite, the smallest area at least 0")
        changed: dict[str, Any] = {}
        if good is not None:
            scores = self.predict(good).scores
            if not len(scores):
                raise DataError("there is no image to calibrate on; give good images that were not trained on")
            if not torch.isfinite(scores).all():
                raise TrainingError("scores of good images are not finite; fit the detector again")
            changed = {"scores": tuple(sorted(scores.tolist())), "source": "held out"}
        if false_alarms is not None or (good is not None and threshold is None):
            known = changed.get("scores", old.scores)
            if not known:
                raise ConfigError("the run keeps no scores of good images; give good images to calibrate on")
            threshold = promised_threshold(known, 0.01 if false_alarms is None else false_alarms)[0]
        given = {"threshold": threshold, "min_area": min_area, "min_peak": min_peak}
        changed |= {k: v for k, v in given.items() if v is not None}
        self.calibration = dataclasses.replace(old, **changed)
        return self.calibration

    def maps(self, images: Any) -> dict[str, Tensor]:
        """Return every member's map (B, H, W) by the method's name, this method's own last; see :meth:`predict`."""
        return {self.method: self.predict(images).maps}

    def predict_split(self, split: Split) -> Prediction:
        """Score every image of a split, a batch at a time."""
        parts = [self.predict(images) for images in batches(split)]
        return Prediction(*(torch.cat(p) for p in zip(*parts, strict=True)))

    def evaluate(self, source: Any) -> dict[str, Any]:
        """Measure the detector on test images: those of a folder, or of what else ``open_source`` takes.

        Returns
        -------
        dict
            ``image_auroc``, ``pixel_auroc``, ``pro`` as fractions, at the resolution ``shape``, masks resized to it;
            ``per_defect`` with the image AUROC of each defect against all good images; ``average_precision``;
            ``decision``, once calibrated: the threshold and what it does here, see :meth:`decide`; counts and seconds;
            ``pixel_auroc_by_defect`` and ``pro_by_defect``. Pixel metrics leave out anomalous images without a mask.
            What is not defined, as pixel metrics are if none has one, is left out. Memory does not grow with the number
            of images: of many, scores go to temporary files, see :mod:`.streamed`, and metrics by defect are left out.

        Raises
        ------
        DataError
            If there is no test image.
        """
        return self.measure(self.open(source).test)[0]

    def measure(self, split: Split) -> tuple[dict[str, Any], Prediction | None]:
        """As :meth:`evaluate`, of a split, and return the prediction too, None if its maps would fill the memory."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*undefined without any", UserWarning)  # it is left out
            if len(split) * split.shape[0] * split.shape[1] * 4 > MAPS_BYTES:
                return defined(self._evaluate_streamed(split)), None
            found, prediction = self.evaluate_split(split)
            return defined({**found, **by_defect(prediction.maps, split)}), prediction

    def _evaluate_streamed(self, split: Split) -> dict[str, Any]:
        """As :meth:`evaluate_split`, without keeping a map."""
        rule = self.calibration and self.calibration.rule
        scores, called, started = [], [], time.perf_counter()
        size = batch_size(split.shape)
        bar = tqdm(range(0, len(split), size), "scoring", leave=False, delay=2)
        with PixelMetrics(ignored=split.view.ignored(split.shape)) as pixels:
            for start in bar:
                chosen = range(start, min(start + size, len(split)))
                images, masks = split.batch(chosen)
                maps = self._finite(self.predict(images), split.paths[start : chosen.stop]).maps
                scores.append(maps.flatten(1).amax(1))
                called += [bool(rule.regions(heat)) for heat in maps.numpy()] if rule else []
                known = split.has_mask[start : chosen.stop]
                pixels.add(maps[known], masks[known])
            seconds = time.perf_counter() - started
            pixel_auroc, pro = pixels.result()
        found, labels = torch.cat(scores), split.labels()
        image_auroc = metrics.image_auroc(found, labels)
        values = {"image_auroc": image_auroc, "pixel_auroc": pixel_auroc, "pro": pro}
        return self._summary(split, values, found, torch.tensor(called), seconds)

    def evaluate_split(self, split: Split) -> tuple[dict[str, Any], Prediction]:
        """As :meth:`measure`, without pixel metrics of each defect, and with NaN for what is not defined."""
        if not len(split):
            raise DataError("there are no test images; fill test/good and test/<defect>, or give labelled images")
        started = time.perf_counter()
        prediction = self.predict_split(split)
        seconds = time.perf_counter() - started
        self._finite(prediction, split.paths)
        called = self._called(prediction) if self.calibration else torch.zeros(0)
        return self._summary(split, measure(prediction, split), prediction.scores, called, seconds), prediction

    def _finite(self, prediction: Prediction, paths: Sequence[Path]) -> Prediction:
        """Return a prediction; raises TrainingError, which names the images, if a score is not finite."""
        known = torch.isfinite(prediction.maps).flatten(1).all(1).tolist()
        if bad := [str(path) for path, finite in zip(paths, known, strict=True) if not finite]:
            raise TrainingError(f"{len(bad)} images have scores that are not finite: {few(bad)}; fit again")
        return prediction

    def _summary(
        self, split: Split, measured: dict[str, float], scores: Tensor, called: Tensor, seconds: float
    ) -> dict[str, Any]:
        """Return what :meth:`evaluate` does, of the pixels' metrics, image scores and verdicts."""
        labels, defects = split.labels(), sorted(set(split.defects) - {"good"})
        of_defect = {d: torch.tensor([x in (d, "good") for x in split.defects]) for d in defects}
        return {
            **measured,
            "average_precision": metrics.average_precision(scores, labels),
            **({"decision": self._decision(called, split)} if self.calibration else {}),
            "per_defect": {d: metrics.image_auroc(scores[i], labels[i]) for d, i in of_defect.items()},
            "shape": list(split.shape),
            "images": len(split),
            "predict_seconds": round(seconds, 3),
        }

    def probe(self, test: Split) -> dict[str, dict[str, float]]:
        """Return metrics beside those of the score map, by name: what a study asks to explain a result; here none."""
        return {}

    def decide(self, prediction: Prediction, split: Split) -> dict[str, Any]:
        """Return rule and promise, and the shares of ``split`` that it calls anomalous, also of every defect."""
        return self._decision(self._called(prediction), split)

    def _called(self, prediction: Prediction) -> Tensor:
        """Return which images are called anomalous, (B,) bool."""
        rule = fitted(self).rule
        return torch.tensor([bool(rule.regions(heat)) for heat in prediction.maps.numpy()])

    def _decision(self, called: Tensor, split: Split) -> dict[str, Any]:
        calibration, labels = fitted(self), split.labels().bool()
        defects = sorted(set(split.defects) - {"good"})
        found = {d: called[torch.tensor([x == d for x in split.defects])] for d in defects}
        rates = decision_rates(called, labels)
        return {
            "threshold": calibration.threshold,
            "min_area": calibration.min_area,
            "min_peak": calibration.min_peak,
            "promise": calibration.promise,
            "calibrated_on": f"{len(calibration.scores)} {calibration.source}",
            **{k: v._asdict() if hasattr(v, "_asdict") else v for k, v in rates.items()},
            "detections_by_defect": {d: f"{int(x.sum())} of {len(x)}" for d, x in found.items()},
        }

    def save(self, folder: str | Path) -> None:
        """Write ``history.csv``, ``config.toml`` and ``checkpoint.safetensors`` to a folder, each atomically.

        Raises
        ------
        BusyError
            If another process writes there.
        MlffnError
            If a file cannot be written.
        """
        folder = Path(folder)
        rows: list[Any] = self.history.to_dict("records")
        state = CheckpointState(
            run=self._run_id,
            method=self.method,
            step=self.step,
            seconds=self.seconds,
            config=self.config.to_dict(),
            data=self._data,
            history=history_digest(rows),
            shape=self.shape,
            view=self.view.to_dict(),
            calibration=None if self.calibration is None else dataclasses.asdict(self.calibration),
        )
        with own(folder):
            if rows:
                write_atomic(folder / HISTORY, history_csv(rows, self._run_id))
            write_config(folder, self.config, self._run_id)
            save_tensors(folder / CHECKPOINT, self._tensors(), state)

    @classmethod
    def load(cls, folder: str | Path, *, device: str | None = None) -> Self:
        """Read a detector that :meth:`save` or a finished :meth:`fit` wrote, of whatever method it is.

        Parameters
        ----------
        folder : path
            The run folder.
        device : str, optional
            Where to run; by default CUDA where there is one, else the CPU.

        Raises
        ------
        CheckpointError
            If files are missing, damaged, of another method, do not belong together, or training has not finished.
        """
        folder = Path(folder)
        config, _ = read_config(folder)
        # Pretrained weights are not needed: the checkpoint holds them all.
        plain = config.replace(model={"weights": "none"}, train={"device": device or "auto"})
        detector = AnomalyDetector(plain)
        if not isinstance(detector, cls):
            raise CheckpointError(f"{folder} holds a run of {config.method}, not of {registry.name_of('methods', cls)}")
        detector.config = config
        if not detector._take_over(folder):
            raise CheckpointError(f"training in {folder} has not finished; finish it with --resume")
        fitted(detector).warn()
        return detector

    def _take_over(self, run: Path, *, resume: bool = False) -> bool:
        """Become the finished detector of a run folder; returns False if fitting there has not finished.

        Where nothing is to be written, the history of its training may be missing.
        """
        tensors, state = load_tensors(run / CHECKPOINT)
        if read_config(run)[1] != state.run:
            raise CheckpointError(
                f"{run / CONFIG} and {CHECKPOINT} beside it are of two runs; restore one or train again"
            )
        if not self.config.matches(state.config):
            raise CheckpointError(
                f"checkpoint {run / CHECKPOINT} is from another configuration; go on with the one in {run / CONFIG},"
                " restore it, or train into another folder"
            )
        if state.calibration is None or state.shape is None:
            return False
        if self._data and state.data != self._data:
            raise CheckpointError(
                f"the training images or the ignore mask are not those of {run}; train into another folder"
            )
        rows = read_history(run / HISTORY, state) if resume or (run / HISTORY).exists() else []
        self._restore(tensors, run / CHECKPOINT)
        self._data, self._run_id, self.shape = state.data, state.run, state.shape
        self.step, self.seconds = state.step, state.seconds
        self.view = _view(state, run / CHECKPOINT)
        try:
            self.calibration = checked(Calibration, state.calibration)
        except ValueError as error:
            raise CheckpointError(f"{run / CHECKPOINT} holds an impossible calibration ({error})") from error
        self.history = pd.DataFrame(rows)
        self._try(run / CHECKPOINT)
        return True

    def _try(self, path: Path) -> None:
        """Score one image of noise: what was read from a file shall fail now, or never."""
        shape = self.tiles.size if self.tiles else self.shape
        if shape[0] * shape[1] > TRIAL_PIXELS:
            raise CheckpointError(
                f"checkpoint {path} scores {shape[0]}x{shape[1]} pixels at a time; fit again in tiles"
            )
        noise = torch.randint(0, 256, (1, 3, *shape), generator=torch.Generator().manual_seed(0)).byte()
        try:
            with torch.inference_mode():
                found = self._run(noise, self._score)
            fits = found.shape == (1, *shape) and bool(torch.isfinite(found).all())
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            if type(error).__name__ == "OutOfMemoryError":
                raise
            raise CheckpointError(
                f"checkpoint {path} does not fit its configuration ({first_line(error)}); fit again"
            ) from error
        if not fits:
            raise CheckpointError(f"checkpoint {path} gives scores that are not finite or of another size; fit again")

    def environment(self) -> dict[str, Any]:
        """Return seed, device, precision of training, threads, versions and commit, to stand beside a result."""
        trained = autocast_dtype(self.config.train.precision, self.device) if self.trains else None
        precision = str(trained or torch.float32).removeprefix("torch.")
        return {"seed": self.config.train.seed, "precision": precision, **environment(self.device)}

    def complete_run(
        self, run: str | Path, source: Any, *, preset: str = ""
    ) -> tuple[dict[str, Any], Prediction | None]:
        """Measure the fitted detector and complete its run folder with ``metrics.json`` and curves as CSV files.

        Parameters
        ----------
        run : path
            Folder that :meth:`fit` wrote.
        source : path, images or data set
            Data with test images; without any, the file says only how the detector was trained.
        preset : str
            Name of the configuration, to stand beside the numbers.

        Returns
        -------
        dict, Prediction or None
            The content of ``metrics.json``, and the prediction for the test images if there are any, unless their maps
            would take more than a gigabyte.
        """
        parts = self.open(source)
        apart = len(parts.test) and not parts.overlap  # a set is not measured on what it was fitted to
        measured, prediction = self.measure(parts.test) if apart else ({}, None)
        result = {
            "run": self.run_id,
            **measured,
            "shape": list(parts.shape),
            "method": self.method,
            "data": parts.root.resolve().name,
            "preset": preset,
            "steps": self.step,
            "train_images": len(parts.train),
            "seconds": round(self.seconds, 1),
            **self.environment(),
        }
        with own(run):
            if prediction is None:
                write_measured(Path(run), result)
            else:
                write_measured(Path(run), result, prediction.scores, prediction.maps, parts.test)
        return result, prediction

    @torch.inference_mode()
    def _calibrate(self, train: Split) -> None:
        """Learn what scores of good images look like, from training images that are left out where that can be."""
        sample = calibration_sample(train, self._held(train))
        maps = torch.cat([self._run(images, self._score_left_out, numbers).cpu() for images, numbers in sample])
        self.calibration = self._calibrated(maps)

    @torch.inference_mode()
    def _calibrate_stitched(self, train: Split) -> None:
        """Calibrate on whole images, of whose stitched maps only some pixels are kept."""
        assert self.tiles is not None
        tiled, count = TiledSplit(train, self.tiles), len(self.tiles.places)
        chosen = calibration_places(len(train), self.held_out(len(train))).tolist()
        ignored = self.view.ignored(self.shape)
        step = max(1, len(chosen) * self.shape[0] * self.shape[1] // CALIBRATION_PIXELS)
        kept, scores = [], []
        for image in chosen:

            def left_out(numbers: list[int], first: int = image * count) -> Tensor:
                places = torch.tensor(numbers) + first
                return self._run(tiled.batch(places)[0], self._score_left_out, places).cpu()

            heat = self.tiles.stitch(left_out, PREDICT_BATCH)
            seen = heat.flatten() if ignored is None else heat[~ignored]
            kept.append(seen[::step].clone())
            scores.append(seen.amax())
        found = Prediction(torch.stack(kept), torch.stack(scores))
        source: Source = "left out" if self.leaves_out else "training"
        self.calibration = Calibration.from_good(found, margin=self._margin, source=source)

    def _calibrated(self, maps: Tensor) -> Calibration:
        """Return the scale of score maps (B, H, W) of good training images; ignored pixels do not count."""
        source: Source = "left out" if self.leaves_out else "training"
        ignored = self.view.ignored(self.shape)
        seen = maps.flatten(1) if ignored is None or self.tiles else maps[:, ~ignored]
        return Calibration.from_good(Prediction(seen, seen.amax(1)), margin=self._margin, source=source)

    @property
    def _margin(self) -> float:
        """Least span of the colours, in units of the score."""
        return 0.0

    def _run(self, images: Tensor, function: Callable[..., Any], *beside: Tensor) -> Any:
        """Apply a function to images (B, 3, H, W), uint8 or float in [0, 1], as :meth:`_score` is applied.

        It takes ``beside``, more tensors (B, …), too; what it returns, a tensor or a list of tensors, has the images
        first. A score shall depend neither on the images beside it nor on which types a processor is fast in: all is
        float32, and every call is of the same size: one image on a CPU, where that is also fastest because its features
        stay in the cache; elsewhere a batch, filled up with copies.
        """
        size = 1 if self.device.type == "cpu" else PREDICT_BATCH
        found = []
        with torch.autocast(self.device.type, enabled=False):
            for start in range(0, len(images), size):
                chunk, *more = (filled(x[start : start + size], size) for x in (images, *beside))
                found.append(function(self._pixels(chunk), *more))
        if isinstance(found[0], Tensor):
            return torch.cat(found)[: len(images)]
        return [torch.cat(parts)[: len(images)] for parts in zip(*found, strict=True)]

    def _run_whole(self, images: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """As :meth:`_run`, of whole images, whose maps (B, ..., H, W) are stitched where they are seen in tiles."""
        tiles = self.tiles
        if tiles is None:
            return self._run(images, function)

        def stitched(image: Tensor) -> Tensor:
            def maps(numbers: list[int]) -> Tensor:
                return self._run(torch.stack([tiles.cut(image, n) for n in numbers]), function).cpu()

            return tiles.stitch(maps, PREDICT_BATCH)

        return torch.stack([stitched(image) for image in images])

    @property
    def tiles(self) -> Tiles | None:
        """The tiles that images are fitted and scored in; None if they are not."""
        side = self.config.data.tile
        return Tiles(self.shape, side, self.config.data.overlap) if 0 < side < max(self.shape) else None

    def _pixels(self, images: Tensor) -> Tensor:
        """Bring images to the device, float in [0, 1], in the layout that convolutions are fastest in."""
        images = images.to(self.device, non_blocking=True)
        scaled = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        return scaled.contiguous(memory_format=torch.channels_last)

    def open(self, source: Any, *, skip_bad: bool = False) -> Parts:
        """Open data for it: once fitted, at its size and through its view; see :func:`open_source`."""
        own: Any = {"shape": self.shape, "view": self.view} if self.calibration else {}
        return open_source(source, self.config.data, skip_bad=skip_bad, **own)


def _view(state: CheckpointState, path: Path) -> View:
    """Return the view that a checkpoint keeps."""
    try:
        return View() if state.view is None else View.from_dict(state.view)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged ({error}); train again or use a copy") from error


def fitted(detector: AnomalyDetector) -> Calibration:
    """Return the calibration of a fitted detector; ValueError if it is not fitted."""
    if detector.calibration is None:
        raise ValueError("the detector is not fitted: call fit or load first")
    return detector.calibration


def read_metrics(folder: str | Path) -> dict[str, Any]:
    """Return what :meth:`AnomalyDetector.complete_run` wrote to a run folder.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, changed, of another run than the configuration beside it, or of another
        calibration than the checkpoint's.
    """
    path = Path(folder) / METRICS
    try:
        values = read_sealed(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be trusted ({error}); measure again") from error
    if values.get("run") != read_config(Path(folder))[1]:
        raise CheckpointError(f"{path} is of another run than {CONFIG} beside it; measure again")
    decided, now = values.get("decision"), load_tensors(Path(folder) / CHECKPOINT)[1].calibration
    if decided is not None and (now is None or any(decided.get(key) != now.get(key) for key in RULE)):
        raise CheckpointError(f"{path} was measured before {folder} was calibrated anew; measure again")
    return values


def measure(prediction: Prediction, split: Split) -> dict[str, float]:
    """Return the three metrics of a split's prediction, see :meth:`AnomalyDetector.evaluate`."""
    known = split.has_mask
    maps, masks, scores, labels = prediction.maps[known], split.masks()[known], prediction.scores, split.labels()
    return measure_maps(maps, masks, scores, labels, ignored=split.view.ignored(split.shape))


def measure_maps(
    maps: Tensor, masks: Tensor, scores: Tensor, labels: Tensor, *, ignored: Tensor | None = None
) -> dict[str, float]:
    """Return the three metrics of maps (M, H, W) with masks, but for pixels ignored, and of scores (N,) with labels."""
    return {
        "image_auroc": metrics.image_auroc(scores, labels),
        "pixel_auroc": metrics.pixel_auroc(maps, masks, ignored=ignored),
        "pro": metrics.pro(maps, masks, ignored=ignored),
    }


def batches(split: Split) -> Iterator[Tensor]:
    """Yield the images of a split, uint8, as many at a time as are scored together."""
    size = batch_size(split.shape)
    for start in range(0, len(split), size):
        yield split.batch(range(start, min(start + size, len(split))))[0]


def batch_size(shape: tuple[int, int]) -> int:
    """Return how many images of a height and width are held at a time."""
    return max(1, min(PREDICT_BATCH, BATCH_PIXELS // (shape[0] * shape[1])))


def calibration_places(images: int, held: Tensor | None) -> Tensor:
    """Return places of training images to calibrate on, evenly spread: of those held out (n,), or of all."""
    among = torch.arange(images) if held is None else held
    return among[:: -(-len(among) // CALIBRATION_IMAGES)]


def calibration_sample(train: Split, held: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the training images to calibrate on, a batch at a time, and their places in the training set."""
    chosen = calibration_places(len(train), held)
    for numbers in chosen.split(PREDICT_BATCH):
        yield train.batch(numbers.tolist())[0], numbers


def filled(x: Tensor, count: int) -> Tensor:
    """Repeat the last of x (B, …), B ≥ 1, until there are ``count``."""
    return x if len(x) == count else torch.cat([x, x[-1:].expand(count - len(x), *x.shape[1:])])
