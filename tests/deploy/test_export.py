"""Exported models give what their run gives, in this library and without it, and say what is wrong in one line."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("onnxscript")

from mlffn_lite.config import Config
from mlffn_lite.datasets.folder import image_tensor, open_image, read_image
from mlffn_lite.datasets.miniparts import miniparts_path
from mlffn_lite.datasets.sources import open_source
from mlffn_lite.datasets.view import View, ignore_png
from mlffn_lite.decision import Rule
from mlffn_lite.deploy import runner
from mlffn_lite.deploy.engine import open_detector
from mlffn_lite.deploy.export import export
from mlffn_lite.detector import AnomalyDetector, fitted

PLAIN = {"shape": [16, 24], "box": None, "ignore": "", "size": None}
Mlffn = Callable[..., tuple[int, str, str]]
Refused = Callable[..., str]


def fit(method: str, source: Path, run: Path) -> Path:
    config = Config.preset("tiny", train={"device": "cpu", "steps": 4, "batch": 4}).replace(method=method)
    AnomalyDetector(config).fit(source, out=run, progress=False)
    return run


def assert_equal(run: Path, exported: AnomalyDetector, source: Path) -> None:
    """The same maps within 1e-4 of their largest value, and the same verdicts, on all test images."""
    detector = AnomalyDetector.load(run, device="cpu")
    split = open_source(source, detector.config.data, shape=detector.shape).test
    expected, found = detector.predict_split(split).maps.numpy(), exported.predict_split(split).maps.numpy()
    assert len(found) > 5
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    rules = fitted(detector).rule, fitted(exported).rule
    verdicts = [
        [bool(rule.regions(heat)) for heat in maps] for rule, maps in zip(rules, (expected, found), strict=True)
    ]
    assert verdicts[0] == verdicts[1]


@pytest.fixture(scope="module", params=["pills", "weave"])
def ensemble(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The run of the recommended method on a set, and that set; its threshold is the score of one of the images."""
    source = miniparts_path() / request.param
    run = fit("ensemble", source, tmp_path_factory.mktemp("runs") / request.param)
    detector = AnomalyDetector.load(run, device="cpu")
    detector.calibrate(threshold=float(detector.predict(sorted(source.glob("test/*/*.png"))).scores.median()))
    detector.save(run)
    assert export(run).deviation < 1e-4
    return run, source


@pytest.fixture(scope="module")
def density(fitted_run: Path) -> Path:
    export(fitted_run)
    return fitted_run


@pytest.mark.slow
def test_onnx_equals_the_run_on_all_test_images(ensemble: tuple[Path, Path]) -> None:
    run, source = ensemble
    assert_equal(run, open_detector(run, "onnx"), source)


@pytest.mark.slow
def test_the_runner_alone_equals_the_run(ensemble: tuple[Path, Path]) -> None:
    run, source = ensemble
    paths = sorted(source.glob("test/*/*.png"))
    watch = "import runpy, sys\nsys.argv = sys.argv[1:]\ntry:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
    watch += (
        "finally:\n    print(sorted({'torch', 'mlffn_lite', 'scipy', 'pandas'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", watch, run / "run.py", run / "model.onnx", *paths], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "[]"
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    detector = AnomalyDetector.load(run, device="cpu")
    maps, scores = detector.predict(paths)
    assert [row["image"] for row in rows] == list(map(str, paths))
    np.testing.assert_allclose([float(row["score"]) for row in rows], scores, rtol=1e-4)
    rule = fitted(detector).rule
    assert [row["verdict"] for row in rows] == ["NOK" if rule.regions(heat) else "OK" for heat in maps.numpy()]
    assert {row["verdict"] for row in rows} == {"OK", "NOK"}


def test_the_runner_is_short() -> None:
    assert len(Path(runner.__file__).read_text().splitlines()) <= 60


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mlffn", "residual", "ensemble_trained", "patchcore", "padim"])
def test_other_methods(method: str, parts: Path, tmp_path: Path) -> None:
    run = fit(method, parts, tmp_path / "run")
    export(run)
    assert_equal(run, open_detector(run, "onnx"), parts)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mlffn", "ensemble_trained"])
def test_openvino_reads_what_has_a_texture_branch(method: str, parts: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    run = fit(method, parts, tmp_path / "run")
    export(run, "openvino")
    assert_equal(run, open_detector(run, "openvino"), parts)


def test_what_openvino_does_not_read_is_one_line(
    refused: Refused, fitted_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openvino = pytest.importorskip("openvino")

    def fail(path: Path) -> None:
        raise RuntimeError("no such operation\nand more")

    monkeypatch.setattr(openvino, "convert_model", fail)
    line = refused("export", fitted_run, "--format", "openvino", "--out", tmp_path / "new/m.xml")
    assert "OpenVINO does not read it (no such operation); export it as onnx" in line
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_openvino_and_torch(density: Path, parts: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    export(density, "openvino", tmp_path / "m.xml")
    assert {p.name for p in tmp_path.iterdir()} == {"m.xml", "m.bin"}
    assert_equal(density, open_detector(tmp_path / "m.xml"), parts)
    export(density, "torch", tmp_path / "m.pt2")
    extra_files = {"mlffn.json": ""}
    program = torch.export.load(tmp_path / "m.pt2", extra_files=extra_files)
    pixels = read_image(parts / "test/scratch/000.png", 64).permute(1, 2, 0)[None]
    heat, score = program.module()(pixels)
    expected = AnomalyDetector.load(density, device="cpu").predict(parts / "test/scratch/000.png")
    torch.testing.assert_close(heat, expected.maps)
    torch.testing.assert_close(score, expected.scores)
    assert json.loads(extra_files["mlffn.json"])["shape"] == [64, 64]


@pytest.mark.slow
def test_a_crop_and_ignored_pixels_go_along(parts: Path, tmp_path: Path) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[50:, 40:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    data = {"crop": (4, 6, 56, 52), "ignore": str(tmp_path / "mask.png")}
    config = Config.preset("tiny", train={"device": "cpu"}, data=data).replace(method="memory")
    run = tmp_path / "run"
    AnomalyDetector(config).fit(parts, out=run, progress=False)
    export(run)
    assert_equal(run, open_detector(run, "onnx"), parts)
    paths = sorted(parts.glob("test/*/*.png"))
    done = subprocess.run([sys.executable, run / "run.py", run / "model.onnx", *paths], capture_output=True, text=True)
    scores = [float(row["score"]) for row in csv.DictReader(io.StringIO(done.stdout))]
    np.testing.assert_allclose(scores, AnomalyDetector.load(run, device="cpu").predict(paths).scores, rtol=1e-4)


def test_predict_by_onnx_writes_what_torch_writes(mlffn: Mlffn, density: Path, parts: Path, tmp_path: Path) -> None:
    words = [parts / "test/good", parts / "test/scratch", "--maps", "npy", "--out"]
    assert mlffn("predict", density, *words, tmp_path / "torch")[0] == 0
    assert mlffn("predict", density, *words, tmp_path / "onnx", "--engine", "onnx")[0] == 0
    assert mlffn("predict", density / "model.onnx", *words, tmp_path / "file")[0] == 0
    tables = [pd.read_csv(tmp_path / name / "scores.csv") for name in ("torch", "onnx", "file")]
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0], rtol=1e-4)
    assert set(tables[0]["verdict"]) == {"OK", "NOK"}
    assert {p.name for p in (tmp_path / "torch").iterdir()} == {p.name for p in (tmp_path / "onnx").iterdir()}
    regions = [pd.read_csv(tmp_path / name / "regions.csv") for name in ("torch", "onnx")]
    pd.testing.assert_frame_equal(regions[1].drop(columns="area"), regions[0].drop(columns="area"), rtol=1e-4)


@given(
    st.lists(st.lists(st.integers(0, 4), min_size=6, max_size=6), min_size=5, max_size=5),
    st.integers(0, 6),
    st.one_of(st.none(), st.integers(0, 5)),
)
def test_the_runner_decides_as_the_library(values: list[list[int]], area: int, peak: int | None) -> None:
    heat = np.array(values, np.float32)
    model = runner.Model.__new__(runner.Model)
    model.session = SimpleNamespace(run=lambda *_: [heat[None]])
    model.meta = {**PLAIN, "threshold": 1.5, "min_area": area, "min_peak": max(1.5, peak or 0)}
    rule = Rule(1.5, area, -np.inf if peak is None else peak)
    assert model.judge(Image.new("RGB", (9, 9))) == ("NOK" if rule.regions(heat) else "OK", heat.max())


def test_the_runner_reads_pixels_as_the_library(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    grey, colour = rng.integers(0, 256, (31, 44), np.uint8), rng.integers(0, 256, (31, 44, 4), np.uint8)
    images = {
        "grey.png": Image.fromarray(grey),
        "colour.png": Image.fromarray(colour[..., :3]),
        "alpha.png": Image.fromarray(colour),
        "palette.png": Image.fromarray(colour[..., :3]).quantize(16),
        "deep.png": Image.fromarray(rng.integers(0, 65536, (31, 44), np.uint16)),
        "float.tiff": Image.fromarray(rng.random((31, 44), np.float32)),
        "bits.png": Image.fromarray(grey > 99),
    }
    model = runner.Model.__new__(runner.Model)
    for name, image in images.items():
        image.save(tmp_path / name)
    turned = images["colour.png"].getexif()
    turned[0x0112] = 6
    images["colour.png"].save(tmp_path / "turned.jpg", exif=turned)
    hidden = np.zeros((31, 44), bool)
    hidden[5:9, 10:20] = True
    for view in (View(), View((3, 2, 25, 20)), View((3, 2, 30, 20), ignore_png(hidden))):
        box = view.box and [view.box[0], view.box[1], view.box[0] + view.box[2], view.box[1] + view.box[3]]
        model.meta = {**PLAIN, "box": box, "ignore": view.png.hex(), "size": view.size and list(view.size)}
        for path in sorted(tmp_path.iterdir()):
            if view.png and path.name == "turned.jpg":
                continue  # not of the mask's size
            with Image.open(path) as image:
                found = model.pixels(image)[0]
            expected = image_tensor(view.cut(open_image(path), path), (16, 24), view.hidden)
            np.testing.assert_array_equal(found, expected.permute(1, 2, 0), err_msg=path.name)
    with pytest.raises(ValueError, match="mask"), Image.open(tmp_path / "turned.jpg") as image:
        model.pixels(image)
    model.meta = {**PLAIN, "box": [0, 0, 32, 40]}
    with pytest.raises(ValueError, match="crop"), Image.open(tmp_path / "grey.png") as image:
        model.pixels(image)


def test_the_runner_judges_bad_files_as_errors(density: Path, parts: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes((parts / "test/good/000.png").read_bytes()[:200])
    words = [sys.executable, str(density / "run.py"), str(density / "model.onnx")]
    images = [tmp_path / "bad.png", tmp_path / "none.png", parts / "test/good/000.png"]
    done = subprocess.run([*words, *images], capture_output=True, text=True)
    assert done.returncode == 2
    assert [row.split(",")[1] for row in done.stdout.splitlines()] == ["verdict", "ERROR", "ERROR", "OK"]
    assert done.stderr == ""
    assert "run.py model.onnx IMAGE" in subprocess.run(words, capture_output=True, text=True).stderr


def test_bad_input_is_one_line(
    mlffn: Mlffn, refused: Refused, density: Path, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = parts / "test/good/000.png"
    new = ["--out", tmp_path / "p"]
    assert "not a run folder" in refused("export", tmp_path)
    assert "onnx, openvino, torch" in refused("export", density, "--format", "tflite")
    assert "ends in .onnx" in refused("export", density, "--out", tmp_path / "m.xml")
    (tmp_path / "run.py").write_text("print('mine')")
    assert "not from mlffn" in refused("export", density, "--out", tmp_path / "m.onnx")
    assert (tmp_path / "run.py").read_text() == "print('mine')"
    assert "torch, onnx, openvino" in refused("predict", density, image, "--engine", "tpu", *new)
    assert "mlffn export" in refused("predict", density, image, "--engine", "openvino", *new)
    (tmp_path / "m.onnx").write_bytes(b"no model")
    assert "cannot be read" in refused("predict", tmp_path / "m.onnx", image, *new)
    (tmp_path / "m.xml").write_bytes(b"<no model>")
    assert "cannot be read" in refused("predict", tmp_path / "m.xml", image, *new)
    run = Path(shutil.copytree(density, tmp_path / "run"))
    assert mlffn("calibrate", run, "--threshold", "3")[0] == 0
    assert "before" in refused("predict", run, image, "--engine", "onnx", *new)
    assert "not a run folder" in refused("calibrate", density / "model.onnx", image)
    assert not (tmp_path / "p").exists()
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "pip install 'mlffn-lite[export]'" in refused("export", density)


def test_foreign_models_are_refused(refused: Refused, density: Path, parts: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(density / "model.onnx")
    for value in (None, "{}", "nonsense", json.dumps({"config": {"data": 3}})):
        del model.metadata_props[:]
        if value is not None:
            onnx.helper.set_model_props(model, {"mlffn": value})
        onnx.save(model, tmp_path / "m.onnx")
        words = ["predict", tmp_path / "m.onnx", parts / "test/good/000.png", "--out", tmp_path / "p"]
        assert "no model of `mlffn export`" in refused(*words)


def test_a_method_that_cannot_be_exported_says_so(density: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlffn_lite.beyond.density import DensityDetector
    from mlffn_lite.errors import ConfigError

    score = DensityDetector._score
    monkeypatch.setattr(DensityDetector, "_score", lambda self, x: score(self, x) * float(x.max()))
    with pytest.raises(ConfigError, match="density cannot be exported"):
        export(density, "onnx", density / "other.onnx")
    assert not (density / "other.onnx").exists()
