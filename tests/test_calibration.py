"""Self-calibration against loops written from §1.3."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlffn_lite.calibration import SafeBatchNorm2d, SelfCalibratedConv


def conv_bn(block: Any, x: Tensor) -> Tensor:
    """ConvBN from its weights, with batch statistics written out."""
    conv, norm = block[0], block[1]
    assert conv.bias is None
    assert conv.kernel_size == (3, 3)
    y = F.conv2d(x, conv.weight, padding=1)
    if norm.training:
        mean, variance = y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)
    else:
        mean, variance = norm.running_mean, norm.running_var
    shape = (1, -1, 1, 1)
    y = (y - mean.view(shape)) / (variance.view(shape) + norm.eps).sqrt()
    return y * norm.weight.view(shape) + norm.bias.view(shape)


def reference(module: SelfCalibratedConv, x: Tensor) -> Tensor:
    """F1 = ConvBN(X); G = σ(X + Up(ConvBN(AvgPool_r(X)))); out = ConvBN(F1 ⊙ G)."""
    rate, (height, width) = module.rate, x.shape[-2:]
    rows, columns = -(-height // rate), -(-width // rate)
    pooled = torch.zeros(*x.shape[:2], rows, columns, dtype=x.dtype)
    for i in range(rows):
        for j in range(columns):
            block = x[:, :, i * rate : (i + 1) * rate, j * rate : (j + 1) * rate]
            pooled[:, :, i, j] = block.mean((2, 3))
    context = conv_bn(module.context, pooled)
    up = torch.zeros_like(x)
    for y in range(height):
        for z in range(width):
            up[:, :, y, z] = context[:, :, y // rate, z // rate]
    gate = 1 / (1 + torch.exp(-(x + up)))
    return conv_bn(module.out, conv_bn(module.feature, x) * gate)


def build(channels: int, rate: int) -> SelfCalibratedConv:
    torch.manual_seed(0)
    module = SelfCalibratedConv(channels, rate).double()
    norms: list[Any] = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:  # values that a mix-up of the three blocks would show
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return module


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("rate", [1, 3, 4])
@pytest.mark.parametrize("size", [(8, 8), (9, 13), (3, 2), (1, 1), (4, 7)])
def test_matches_the_equations(size: tuple[int, int], rate: int, train: bool) -> None:
    module = build(3, rate).train(train)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    got, expected = module(x), reference(module, x)
    assert got.shape == x.shape
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    single = module.eval().float()
    torch.testing.assert_close(single(x.float()), reference(module.double(), x).float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 4), (5, 3)])
def test_gradients(size: tuple[int, int]) -> None:
    module = build(2, 4)
    x = torch.randn(2, 2, *size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, (x,))


def test_one_pooled_pixel_trains() -> None:
    """One image of 4×4 pools to one value per channel; the norm then uses its running statistics."""
    module = SelfCalibratedConv(4).train()
    module(torch.randn(1, 4, 4, 4)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    norm: Any = SafeBatchNorm2d(2)
    x = torch.tensor([[[[3.0]], [[-1.0]]]])
    torch.testing.assert_close(norm(x), x / (1 + norm.eps) ** 0.5)
    y = torch.randn(4, 2, 3, 3)
    plain: Any = nn.BatchNorm2d(2)
    assert torch.equal(norm(y), plain(y))
    assert torch.equal(norm.running_mean, plain.running_mean)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_memory_format(dtype: torch.dtype) -> None:
    module = build(8, 4).float().eval()
    x = torch.randn(2, 8, 10, 6)
    exact = module(x)
    torch.testing.assert_close(module(x.to(memory_format=torch.channels_last)), exact, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", dtype):
        out = module(x.to(dtype))
    assert out.dtype == dtype
    assert (out.float() - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize(("channels", "rate"), [(0, 4), (8, 0)])
def test_bad_arguments(channels: int, rate: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        SelfCalibratedConv(channels, rate)
