"""Not one bit of a run changes unnoticed, and what is forged fits or is refused, in one line."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from mlffn_lite.datasets.folder import AnomalyFolder
from mlffn_lite.datasets.view import View
from mlffn_lite.detector import AnomalyDetector, read_metrics
from mlffn_lite.errors import CheckpointError, MlffnError
from mlffn_lite.network import MLFFN
from mlffn_lite.sealed import BLANK, seal
from mlffn_lite.storage import CHECKPOINT, CONFIG, HISTORY, METRICS, load_tensors, write_config
from mlffn_lite.training import Trainer

from .conftest import CONFIG as SETTINGS

Read = Callable[[Path], object]
READERS: dict[str, Read] = {CHECKPOINT: AnomalyDetector.load, CONFIG: AnomalyDetector.load, METRICS: read_metrics}


def refused(read: Callable[[], object]) -> str:
    """What is said in the one line of the refusal."""
    with pytest.raises(MlffnError) as caught:
        read()
    assert "\n" not in str(caught.value).strip()
    return str(caught.value)


@pytest.mark.parametrize("name", READERS)
def test_no_flipped_bit_is_believed(
    name: str, run: Path, tmp_path: Path, tries: int, draws: np.random.Generator
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    READERS[name](copy)  # whole, it is read
    whole = (copy / name).read_bytes()
    for place in draws.integers(8 * len(whole), size=tries):
        content = bytearray(whole)
        content[place // 8] ^= 1 << (place % 8)
        (copy / name).write_bytes(content)
        refused(lambda: READERS[name](copy))


@pytest.mark.parametrize("name", READERS)
def test_no_shortened_file_is_believed(name: str, run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    whole = (copy / name).read_bytes()
    for keep in (0, 1, 7, 100, len(whole) // 2, len(whole) - 1):
        (copy / name).write_bytes(whole[:keep])
        refused(lambda: READERS[name](copy))


def forge(
    path: Path, state: Callable[[dict[str, Any]], Any], tensors: Callable[[dict[str, Any]], Any] | None = None
) -> None:
    """Change a checkpoint and seal it anew, as one who knows the format would."""
    content = path.read_bytes()
    head = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    values = json.loads(head["__metadata__"]["state"])
    changed = state(values)
    kept = safetensors.torch.load(content)
    if tensors is not None:
        tensors(kept)
    text = changed if isinstance(changed, str) else json.dumps(values if changed is None else changed)
    path.write_bytes(seal(safetensors.torch.save(kept, metadata={"state": text, "seal": BLANK})))


def put(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set one value of a state; ``a.b`` is that of a table in it."""

    def change(state: dict[str, Any]) -> None:
        *outer, last = key.split(".")
        for name in outer:
            state = state[name]
        state[last] = value

    return change


VALUES: dict[str, tuple[Any, ...]] = {
    "step": ("x", None, -1, 1.5),
    "seconds": ("x", None, -1, math.nan),
    "shape": ("ab", [], [64], [-64, 64], [64.5, 64], [1, 1], [64, 1 << 40]),
    "method": ([], {}),
    "run": ("", "0" * 31, "0" * 32, None),
    "config": ([], {"train": 3}, {"none": {}}),
    "calibration": ("x", [], {}),
    "calibration.threshold": (math.nan, math.inf, "1", None),
    "calibration.low": (math.nan, 1e300),
    "calibration.high": (-1e300,),
    "calibration.more": (1,),
    "calibration.source": ("a wish", None),
    "calibration.scores": ([2.0, 1.0], [math.nan], "x"),
    "calibration.min_area": (-1, "x"),
}
FORGED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda state: [],
    "null": lambda state: "null",
    "a number": lambda state: "3",
    "nested deeply": lambda state: "[" * 100_000,
    "a key too many": put("more", 1),
    "a key missing": lambda state: state.pop("step") and None,
    **{f"{key} {value!r}": put(key, value) for key, values in VALUES.items() for value in values},
}


@pytest.mark.parametrize("what", FORGED)
def test_an_impossible_state_is_one_line(what: str, run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    forge(copy / CHECKPOINT, FORGED[what])
    refused(lambda: AnomalyDetector.load(copy))


def change_all(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor]], None]:
    def apply(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({k: change(v) for k, v in tensors.items()})

    return apply


@pytest.mark.parametrize(
    "change",
    [
        change_all(lambda x: x.to(torch.int32)),
        change_all(lambda x: x * math.nan if x.is_floating_point() else x),
        change_all(lambda x: x[..., :1].contiguous() if x.ndim else x),
        change_all(lambda x: x[None]),
        lambda tensors: tensors.pop(min(tensors)),
        lambda tensors: tensors.pop(min(k for k in tensors if k.endswith("num_batches_tracked"))),
        lambda tensors: tensors.clear(),
    ],
)
def test_tensors_that_fit_nothing_are_one_line(change: Any, run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    forge(copy / CHECKPOINT, lambda state: None, change)
    refused(lambda: AnomalyDetector.load(copy))


def test_weights_of_zero_are_refused_or_give_finite_scores(run: Path, folder: AnomalyFolder, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    forge(copy / CHECKPOINT, lambda state: None, change_all(torch.zeros_like))
    with contextlib.suppress(CheckpointError):
        assert AnomalyDetector.load(copy).predict(folder.test.paths[:1]).maps.isfinite().all()


@pytest.mark.parametrize(
    "name", ["optimizer.999.exp_avg", "optimizer.a.b", "optimizer.0", "optimizer.0.junk", "optimizer.-1.step"]
)
def test_an_optimisers_tensor_that_fits_nothing_is_one_line(name: str, trained: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(trained, tmp_path / "copy"))
    forge(copy / CHECKPOINT, lambda state: None, lambda tensors: tensors.update({name: torch.zeros(3)}))
    assert "fits no parameter" in refused(lambda: resume(copy))


@pytest.mark.parametrize("step", [3, 10**9])
def test_a_step_after_the_last_is_one_line(step: int, trained: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(trained, tmp_path / "copy"))
    forge(copy / CHECKPOINT, put("step", step))
    assert f"step {step} of 2" in refused(lambda: resume(copy))


def resume(folder: Path) -> None:
    config = SETTINGS.replace(method="mlffn")
    loop = Trainer(MLFFN(config.model, config.texture), config, folder=folder)
    loop.fit(range(4), resume=True, progress=False)  # type: ignore[arg-type]  # no image is asked for


@pytest.mark.parametrize("change", ["removed", "emptied", "cut", "edited", "another run's", "huge field"])
def test_a_history_that_is_not_the_runs_is_one_line(change: str, trained: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(trained, tmp_path / "copy"))
    path = copy / HISTORY
    lines = path.read_text().splitlines()
    assert len(lines) > 1
    match change:
        case "removed":
            path.unlink()
        case "emptied":
            path.write_text("")
        case "cut":
            path.write_text(lines[0] + "\n")
        case "edited":
            path.write_text("\n".join([lines[0], lines[1].replace(",", ",1", 1)]))
        case "another run's":
            path.write_text("\n".join([lines[0], lines[1][:-32] + "0" * 32]))
        case "huge field":
            path.write_text("\n".join([lines[0], "1" * 200_000 + lines[1]]))
    refused(lambda: resume(copy))


def test_a_copy_to_predict_with_needs_no_history(run: Path, tmp_path: Path) -> None:
    for name in (CONFIG, CHECKPOINT):
        shutil.copy(run / name, tmp_path / name)
    assert AnomalyDetector.load(tmp_path).calibration is not None


def test_a_configuration_of_another_run_is_refused(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    write_config(copy, SETTINGS, "0" * 32)
    assert "two runs" in refused(lambda: AnomalyDetector.load(copy))
    assert "another run" in refused(lambda: read_metrics(copy))
    (copy / CONFIG).write_text(SETTINGS.to_toml())
    assert "changed by hand" in refused(lambda: AnomalyDetector.load(copy))


def test_results_of_an_earlier_calibration_are_refused(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    threshold = read_metrics(copy)["decision"]["threshold"]
    for changed in ({"threshold": threshold + 1}, {"threshold": threshold, "min_area": 3}):
        detector = AnomalyDetector.load(copy)
        detector.calibrate(**changed)
        detector.save(copy)
        assert "calibrated anew" in refused(lambda: read_metrics(copy))
    detector.calibrate(min_area=0)
    detector.save(copy)
    assert read_metrics(copy)["decision"]["threshold"] == threshold


def test_a_mask_of_ignored_pixels_that_is_a_bomb_or_broken_is_one_line(run: Path, tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(stream, "PNG")
    huge = stream.getvalue()
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).random((64, 64)) > 0.5).save(stream, "PNG")
    broken = stream.getvalue()[:-30] + b"IDAT" + bytes(26)
    for number, png in enumerate((huge, broken)):
        copy = Path(shutil.copytree(run, tmp_path / str(number)))
        view = {"box": None, "ignore": base64.b64encode(png).decode(), "ignore_sha256": View(None, png).digest}
        forge(copy / CHECKPOINT, put("view", view))
        refused(lambda copy=copy: AnomalyDetector.load(copy))  # type: ignore[misc]


def test_a_checkpoint_without_a_digest_is_refused(run: Path, tmp_path: Path) -> None:
    tensors, state = load_tensors(run / CHECKPOINT)
    safetensors.torch.save_file(tensors, tmp_path / "x", metadata={"state": state.model_dump_json()})
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_tensors(tmp_path / "x")
