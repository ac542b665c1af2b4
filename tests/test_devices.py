"""The same numbers on a GPU as on the CPU, where there is a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mlffn_lite.config import Config, LossConfig, ModelConfig, TextureConfig
from mlffn_lite.detector import AnomalyDetector
from mlffn_lite.losses import resize_mask, total_loss
from mlffn_lite.network import MLFFN

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")]


def test_network_and_losses_agree() -> None:
    torch.manual_seed(0)
    network = MLFFN(ModelConfig(width=16), TextureConfig(tem_levels=8, scales=(1, 2))).eval()
    images, mask = torch.rand(2, 3, 70, 64), torch.zeros(2, 1, 70, 64, dtype=torch.bool)
    mask[0, :, 10:30, 20:40] = True
    results = {}
    for device in ("cpu", "cuda"):
        network.to(device).zero_grad()
        output = network(images.to(device))
        where = resize_mask(mask.to(device), output.score.shape[-2:])
        partners = torch.Generator().manual_seed(1)
        terms = total_loss(output.features, output.score, where, LossConfig(), generator=partners)
        terms.total.backward()
        gradients = torch.cat([p.grad.flatten().cpu() for p in network.heads() if p.grad is not None])
        results[device] = (output.score.detach().cpu(), torch.stack([*terms]).detach().cpu(), gradients)
    for a, b in zip(*results.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=5e-3, atol=5e-3)


def test_trained_on_the_gpu_runs_on_the_cpu(parts: Path, tmp_path: Path) -> None:
    train = {"steps": 4, "batch": 4, "device": "cuda", "precision": "fp32"}
    config = Config.preset("tiny", model={"width": 16}, texture={"tem_levels": 8}, train=train)
    detector = AnomalyDetector(config).fit(parts, out=tmp_path / "r", progress=False)
    images = torch.rand(2, 3, 64, 64)
    there, here = detector.predict(images), AnomalyDetector.load(tmp_path / "r", device="cpu").predict(images)
    torch.testing.assert_close(there.maps, here.maps, rtol=2e-2, atol=2e-2)
