"""The service: verdicts for images, one line for all else, and no request lost."""

from __future__ import annotations

import base64
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from systems import signals

pytest.importorskip("fastapi")

from fastapi.testclient import TestClient

from mlffn_lite.deploy.serve import BUCKETS, Limits, Metrics, create_app
from mlffn_lite.detector import AnomalyDetector, Prediction, fitted
from mlffn_lite.heatmaps import Outputs, judge


@pytest.fixture(scope="module")
def detector(fitted_run: Path) -> AnomalyDetector:
    return AnomalyDetector.load(fitted_run, device="cpu")


@pytest.fixture
def client(detector: AnomalyDetector) -> TestClient:
    return TestClient(create_app(detector, limits=Limits(0.05, 0.01, 20)))


def test_it_judges_as_predict_does(client: TestClient, detector: AnomalyDetector, parts: Path) -> None:
    seen = set()
    for path in sorted(parts.glob("test/*/*.png")):
        expected = judge(detector, path, Outputs("none"))
        found = client.post("/predict", content=path.read_bytes()).json()
        assert found["verdict"] == expected.row["verdict"]
        assert found["score"] == pytest.approx(expected.row["score"])
        assert found["threshold"] == fitted(detector).threshold
        assert (found["width"], found["height"]) == (64, 64)
        assert [{"image": str(path), **region} for region in found["regions"]] == expected.regions
        assert "heatmap" not in found
        seen.add(found["verdict"])
    assert seen == {"OK", "NOK"}


def test_heatmaps_come_as_png_or_in_the_answer(client: TestClient, parts: Path) -> None:
    body = (parts / "test/scratch/000.png").read_bytes()
    answer = client.post("/predict?picture=1", content=body)
    assert (answer.headers["content-type"], answer.headers["x-verdict"]) == ("image/png", "NOK")
    picture = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert picture.shape == (64, 64, 3)
    found = client.post("/predict?heatmap=1", content=body).json()
    assert base64.b64decode(found["heatmap"]) == answer.content
    assert float(answer.headers["x-score"]) == found["score"]


def test_what_is_no_image_is_one_line(client: TestClient, parts: Path) -> None:
    body = (parts / "test/good/000.png").read_bytes()
    large = io.BytesIO()
    Image.new("L", (200, 100)).save(large, "PNG")
    small = io.BytesIO()
    Image.new("L", (4, 4)).save(small, "PNG")
    vector = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    for content, code, word in (
        (b"", 400, "no image"),
        (b"nonsense", 400, "known format"),
        (body[:300], 400, "cannot be read"),
        (small.getvalue(), 400, "8"),
        (vector, 400, "known"),
        (b"x" * 60_000, 413, "MB"),
        (iter([b"x" * 30_000] * 2), 413, "MB"),
        (large.getvalue(), 413, "megapixels"),
    ):
        answer = client.post("/predict", content=content)
        assert answer.status_code == code, answer.text
        (line,) = answer.json()["detail"].splitlines()
        assert word in line
    answer = client.post("/predict", files={"file": body})
    assert answer.status_code == 415
    assert client.post("/predict?picture=maybe", content=body).status_code == 422
    assert client.get("/predict").status_code == 405
    assert client.post("/predict", content=body).status_code == 200  # it goes on
    text = client.get("/metrics").text
    assert 'mlffn_requests_total{code="400"} 5' in text
    assert 'mlffn_requests_total{code="413"} 3' in text
    assert 'mlffn_verdicts_total{verdict="OK"} 1' in text


def test_scores_that_are_not_finite_are_no_verdict(
    client: TestClient, detector: AnomalyDetector, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = detector._score
    monkeypatch.setattr(detector, "_score", lambda x: score(x) * float("nan"))
    answer = client.post("/predict", content=(parts / "test/good/000.png").read_bytes())
    assert answer.status_code == 500
    assert "not finite" in answer.json()["detail"]


def test_a_token_is_wanted_where_there_is_one(detector: AnomalyDetector, parts: Path) -> None:
    client = TestClient(create_app(detector, token="word"))
    body = (parts / "test/good/000.png").read_bytes()
    assert client.post("/predict", content=body).status_code == 401
    assert client.get("/metrics", headers={"Authorization": "Bearer other"}).status_code == 401
    right = {"Authorization": "Bearer word"}
    odd = {b"Authorization": "Bearer wörd".encode()}
    assert client.post("/predict", content=body, headers=odd).status_code == 401
    assert client.post("/predict", content=body, headers=right).status_code == 200
    assert client.get("/health").json()["status"] == "ok"
    assert 'id="token"' in client.get("/").text


def test_what_takes_too_long_ends(detector: AnomalyDetector, parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = TestClient(create_app(detector, limits=Limits(seconds=0.3)))
    predict = detector.predict

    def slow(images: Any) -> Prediction:
        time.sleep(1)
        return predict(images)

    monkeypatch.setattr(detector, "predict", slow)
    body = (parts / "test/good/000.png").read_bytes()
    answer = client.post("/predict", content=body)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_metrics_are_prometheus_text() -> None:
    metrics = Metrics()
    for seconds in (0.001, 0.03, 99.0):
        metrics.add(200, "OK", seconds)
    lines = metrics.text().splitlines()
    for line in lines:
        assert re.fullmatch(r'# (HELP|TYPE) \w+ .+|\w+(\{\w+="[^"]*"\})? [0-9.e+-]+', line), line
    buckets = [int(line.split()[-1]) for line in lines if line.startswith("mlffn_seconds_bucket")]
    assert buckets == [1, 1, *[2] * (len(BUCKETS) - 2), 3]
    assert "mlffn_seconds_count 3" in lines


def test_the_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    text = client.get("/").text
    assert not re.findall(r"https?://", text)
    assert "default-src 'none'" in text


@pytest.mark.slow
@signals
def test_it_runs_from_the_command_line_and_loses_nothing(fitted_run: Path, parts: Path) -> None:
    command = [sys.executable, "-m", "mlffn_lite", "serve", str(fitted_run), "--port", "0", "--device", "cpu"]
    body = (parts / "test/scratch/000.png").read_bytes()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[2].rstrip(";")
        with httpx.Client(base_url=address, timeout=60) as client, ThreadPoolExecutor(8) as pool:
            until = time.monotonic() + 30
            while time.monotonic() < until:
                try:
                    client.get("/health")
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            codes = list(pool.map(lambda _: client.post("/predict", content=body).json()["verdict"], range(40)))
            assert codes == ["NOK"] * 40
            assert 'mlffn_verdicts_total{verdict="NOK"} 40' in client.get("/metrics").text
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(120) == 0


def test_bad_input_is_one_line(
    refused: Callable[..., str], fitted_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "not a run folder" in refused("serve", tmp_path)
    assert "torch, onnx, openvino" in refused("serve", fitted_run, "--engine", "tpu")
    with socket.create_server(("127.0.0.1", 0)) as door:
        assert "choose another --port" in refused("serve", fitted_run, "--port", door.getsockname()[1])
    assert "cannot listen" in refused("serve", fitted_run, "--host", "no.such.host.invalid")
    assert "ASCII" in refused("serve", fitted_run, "--token", "wörd")
    assert "port" in refused("serve", fitted_run, "--port", "70000")
    monkeypatch.delitem(sys.modules, "mlffn_lite.deploy.serve", raising=False)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert "pip install 'mlffn-lite[serve]'" in refused("serve", fitted_run)
