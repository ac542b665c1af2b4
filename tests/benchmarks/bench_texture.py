"""Time TEM and PTFEM, forward + backward, against the dense textbook form with the same weights.

Run ``python tests/benchmarks/bench_texture.py [--size 64] [--batch 8] [--channels 128] [--device cpu] [--threads 2]``.
The textbook form writes the equations with dense encodings, outer products and concatenations, as a reader would.
The largest difference of outputs and gradients is printed too: a fast wrong answer is no speed-up.
"""

from __future__ import annotations

import argparse
import copy
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlffn_lite.calibration import SelfCalibratedConv
from mlffn_lite.texture import PyramidTexture, StatisticalTexture, TextureEnhancement


def encode(x: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Equation (1), bin centres and full-bin window: (B, C, h, w) → E (B, N, h*w), L (B, N), g (B, C)."""
    mean = x.mean((2, 3))
    similarity = F.cosine_similarity(x, mean[..., None, None], dim=1).flatten(1)
    low, high = similarity.amin(1, keepdim=True), similarity.amax(1, keepdim=True)
    step = (high - low) / levels
    ladder = low + (torch.arange(levels, device=x.device) + 0.5) * step
    distance = (ladder[:, :, None] - similarity[:, None]).abs()
    return (1 - distance) * (distance < step[:, None]), ladder, mean


def textbook_tem(module: TextureEnhancement, x: Tensor) -> Tensor:
    """TEM with a dense encoding."""
    levels = module.bins.levels
    encoding, ladder, mean = encode(x, levels)
    counts = encoding.sum(2)
    counts = counts / counts.sum(1, keepdim=True)
    shared = module.reduce(mean)[:, None].expand(-1, levels, -1)
    described = torch.cat((module.statistics(torch.stack((ladder, counts * levels), -1)), shared), -1)
    q, k, v = module.qkv(described).chunk(3, -1)
    described = v + torch.softmax(q @ k.mT * module.scale, -1) @ v
    described = module.out(described.flatten(0, 1)).view(*counts.shape, -1)
    return torch.einsum("bnc,bnk->bck", described, encoding).view_as(x)


def textbook_ptfem(module: Any, x: Tensor) -> Tensor:
    """PTFEM with outer products per pixel pair, concatenated means and full-size branches."""
    (batch, channels, height, width), levels = x.shape, module.bins.levels
    branches = []
    for scale, unit in zip(module.scales, module.units, strict=True):
        h, w = height // scale, width // scale
        regions = x.view(batch, channels, scale, h, scale, w).permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, h, w)
        encoding, ladder, mean = encode(regions, levels)
        encoding = encoding.view(-1, levels, h, w)
        pairs = (encoding[:, :, None, :, :-1] * encoding[:, None, :, :, 1:]).sum((3, 4))
        pairs = pairs / pairs.sum((1, 2), keepdim=True)
        rows = ladder[:, :, None].expand_as(pairs)
        hidden = F.relu(unit.pair(torch.stack((rows, rows.mT, pairs * levels**2), -1)))
        shared = mean[:, None, None].expand(-1, levels, levels, -1)
        weight = torch.cat((unit.mix.weight, unit.mean.weight), 1)
        hidden = F.linear(torch.cat((hidden, shared), -1), weight)
        hidden = F.relu(unit.pair_norm(hidden.flatten(0, 2)).view_as(hidden))
        described = F.relu(unit.norm(hidden.mean((1, 2)))).view(batch, scale, scale, -1).permute(0, 3, 1, 2)
        branches.append(F.interpolate(described, (height, width), mode="bilinear"))
    return F.conv2d(torch.cat(branches, 1), module.fuse.weight[..., None, None], module.fuse.bias)


def measure(
    function: Callable[[Tensor], Tensor], x: Tensor, weights: Sequence[Tensor], amp: bool
) -> tuple[float, list[Tensor]]:
    """Return seconds of one forward + backward pass, and the output followed by the gradients."""
    x = x.detach().requires_grad_()
    probe = torch.linspace(-1, 1, x.numel(), device=x.device).view_as(x).to(memory_format=torch.channels_last)
    synchronise(x)
    clock = time.process_time if processor_time(x) else time.perf_counter
    start = clock()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=amp):
        out = function(x)
    gradients = torch.autograd.grad(out, [x, *weights], probe.to(out.dtype))
    synchronise(x)
    return clock() - start, [out.detach(), *gradients]


def processor_time(x: Tensor) -> bool:
    """On one thread the processor's own time can be read, which busy neighbours disturb less."""
    return x.device.type == "cpu" and torch.get_num_threads() == 1


def synchronise(x: Tensor) -> None:
    """Wait for the device."""
    if x.device.type == "cuda":
        torch.cuda.synchronize()


def difference(module: nn.Module, textbook: Callable[..., Tensor], x: Tensor) -> float:
    """Largest deviation of output and gradients, relative to the largest value of each tensor."""
    module = copy.deepcopy(module).double()
    weights = list(module.parameters())
    _, ours = measure(module, x, weights, False)
    _, theirs = measure(functools.partial(textbook, module), x, weights, False)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, theirs, strict=True))


def main() -> None:
    """Print one line per module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    amp = args.precision == "bf16"
    x = torch.randn(args.batch, args.channels, args.size, args.size)
    x = F.relu(F.avg_pool2d(x, 3, 1, 1) * 3).to(args.device, memory_format=torch.channels_last)
    print(
        f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads, {args.precision}, "
        f"{args.batch}×{args.channels}×{args.size}×{args.size}, forward + backward, "
        f"ms of {'processor' if processor_time(x) else 'wall'} time per image: min (median)"
    )
    cases: list[tuple[nn.Module, Callable[..., Tensor]]] = [
        (TextureEnhancement(args.channels), textbook_tem),
        (PyramidTexture(args.channels), textbook_ptfem),
    ]
    for module, textbook in cases:
        weights = list(module.to(args.device).parameters())
        by_the_book = functools.partial(textbook, module)
        ours, theirs = [], []
        for _ in range(args.repeats):  # alternate, so that neighbours disturb both alike
            ours.append(measure(module, x, weights, amp)[0])
            theirs.append(measure(by_the_book, x, weights, amp)[0])
        line = f"{type(module).__name__:20s} {summary(ours, args.batch)}   textbook {summary(theirs, args.batch)}"
        line += f"   {min(theirs) / min(ours):.1f}×"
        if args.device != "mps":
            line += f"   difference in float64 {difference(module, textbook, x[:2].double()):.0e}"
        print(line)
    for module in (StatisticalTexture(args.channels), SelfCalibratedConv(args.channels)):
        weights = list(module.to(args.device).parameters())
        ours = [measure(module, x, weights, amp)[0] for _ in range(args.repeats)]
        print(f"{type(module).__name__:20s} {summary(ours, args.batch)}")


def summary(runs: list[float], batch: int) -> str:
    """Minimum and median in ms per image."""
    times = [seconds * 1e3 / batch for seconds in runs]
    return f"{min(times):6.2f} ({statistics.median(times):6.2f})"


if __name__ == "__main__":
    main()
