"""The CUDA path where there is no GPU: traced with tensors that have a device but no values.

An operation that mixes devices fails there, and so does one that needs a value on the host, as ``.item()`` does: what
passes neither copies nor waits in the middle of a step. Gradients cannot be traced so: autograd asks for the GPU.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from mlffn_lite.beyond.density import MultiscaleDensity
from mlffn_lite.beyond.memory import PatchMemory
from mlffn_lite.beyond.residual import ResidualMLFFN
from mlffn_lite.config import BankConfig, LossConfig, ModelConfig, TextureConfig
from mlffn_lite.losses import resize_mask, total_loss
from mlffn_lite.network import MLFFN

CUDA = torch.device("cuda")


def like(value: Tensor) -> Tensor:
    """Return a tensor of that shape and type on the GPU; called inside the mode."""
    return torch.empty(value.shape, dtype=value.dtype, device=CUDA)


def moved(module: Any) -> Any:
    """Give a module tensors on the GPU in place of its own; called inside the mode."""
    for part in module.modules():
        for name, value in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(like(value), value.requires_grad))
        for name, value in part.named_buffers(recurse=False):
            setattr(part, name, like(value))
    return module


@pytest.mark.parametrize("kind", [MLFFN, ResidualMLFFN])
@pytest.mark.parametrize("loss", [LossConfig(), LossConfig(pairing="mean", softmax="negative", balanced=False)])
def test_network_and_losses_stay_on_the_device(kind: type[MLFFN], loss: LossConfig) -> None:
    network = kind(ModelConfig(width=16, weights="none"), TextureConfig(tem_levels=8, scales=(1, 2)))
    with FakeTensorMode():
        moved(network)
        images, mask = torch.rand(2, 3, 70, 64, device=CUDA), torch.zeros(2, 1, 70, 64, dtype=torch.bool, device=CUDA)
        with torch.autocast("cuda", torch.bfloat16):
            output = network(images)
        where = resize_mask(mask, output.score.shape[-2:])
        terms = total_loss(output.features, output.score, where, loss, generator=torch.Generator())
        assert {x.device.type for x in (*output, *terms)} == {"cuda"}


def test_the_density_scores_on_the_device() -> None:
    stacks = [torch.rand(5, 8, 6, 5), torch.rand(5, 12, 3, 3)]
    density = MultiscaleDensity([8, 12], 4, 0.2).fit(iter([stacks]))
    with FakeTensorMode():
        moved(density)
        seen = [like(x) for x in stacks]
        assert density(seen).device.type == "cuda"


def test_a_memory_scores_on_the_device() -> None:
    memory = PatchMemory(8, 16, BankConfig(floor=0.1, dims=4, neighbours=3))
    memory.fit(torch.rand(60, 8), torch.arange(60) // 30, torch.Generator())
    with FakeTensorMode():
        moved(memory)
        features = torch.rand(2, 8, 6, 5, device=CUDA)
        assert memory(features).device.type == "cuda"
        assert memory(features, torch.tensor([0, 1])).device.type == "cuda"


@pytest.mark.parametrize(
    "mistake",
    [
        lambda x: x + torch.ones(4, 4),
        lambda x: x.sum().item(),
        lambda x: x if x.sum() > 0 else -x,
    ],
)
def test_what_would_copy_or_wait_is_noticed(mistake: Any) -> None:
    with FakeTensorMode(), pytest.raises((RuntimeError, DataDependentOutputException)):
        mistake(torch.rand(4, 4, device=CUDA))
