"""What each part of the preset ``parts`` buys: ``python tests/benchmarks/ablation.py DATA… --out FILE``.

The maps of all parts are made once for a set and a seed; an arm is another mean of them, so that arms differ in nothing
else. FILE keeps a line of JSON per set, seed and arm; what stands there is not measured again. The table is printed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from torch import Tensor
from tqdm.auto import tqdm

from mlffn_lite import metrics
from mlffn_lite.beyond.borders import fields, fit_scale
from mlffn_lite.beyond.ensemble import EnsembleDetector
from mlffn_lite.config import Config
from mlffn_lite.datasets.miniparts import CATEGORIES, miniparts_path
from mlffn_lite.datasets.sources import Parts, open_source
from mlffn_lite.detector import Prediction, batches, calibration_sample, measure
from mlffn_lite.studies.cell import NUMERICS

PARTS = ("density 8", "density 16", "whitened", "plain", "averaged")
"""The density's strides and the memory's banks, in the order of their maps."""

ARMS: dict[str, tuple[str, ...]] = {
    "preset parts": PARTS,
    **{f"without {part}": tuple(p for p in PARTS if p != part) for part in PARTS},
    **{f"{part} alone": (part,) for part in PARTS},
    "density": PARTS[:2],
    "memory": PARTS[2:],
}
NO_RINGS, TOP = "without rings", "image score: mean of the highest 0.1 %"


@torch.inference_mode()
def maps_of(detector: EnsembleDetector, parts: Parts) -> tuple[Tensor, Tensor]:
    """Return every part's maps of left-out good images and of test images, (N, parts, H, W)."""
    sample = calibration_sample(parts.train, detector.held_out(len(parts.train)))
    good = [detector._run(images, detector._maps, numbers) for images, numbers in sample]
    return torch.cat(good), torch.cat([detector._run(images, detector._maps) for images in batches(parts.test)])


def arms(good: Tensor, test: Tensor, names: list[str], rings: int) -> dict[str, Tensor]:
    """Return the maps (N, H, W) of every arm."""

    def scaled(count: int) -> dict[str, Tensor]:
        spread = [fields(fit_scale(part, count), *test.shape[-2:]) for part in good.unbind(1)]
        return {n: (m - s.centre) / s.width for n, m, s in zip(names, test.unbind(1), spread, strict=True)}

    found = scaled(rings)
    result = {arm: torch.stack([found[p] for p in chosen]).mean(0) for arm, chosen in ARMS.items()}
    whole = scaled(0)
    result[NO_RINGS] = torch.stack([whole[p] for p in PARTS]).mean(0)
    for name in names[len(PARTS) :]:
        result[f"{name} alone"] = found[name]
        for weight in (1, 2):
            arm = f"with {name}" + f", weight {weight}" * (weight > 1)
            result[arm] = torch.stack([*(found[p] for p in PARTS), *[found[name]] * weight]).mean(0)
    return result


def run(path: Path, size: int, seed: int, networks: list[str]) -> list[dict[str, object]]:
    """Measure all arms on one set."""
    members = {"density": 2.0, "memory": 3.0, **dict.fromkeys(networks, 1.0)}
    config = Config.preset("parts", data={"size": size}, train={"seed": seed}, ensemble={"members": members})
    parts = open_source(path, config.data)
    detector = EnsembleDetector(config).fit(parts, progress=False)
    names = [*PARTS, *networks]  # the members come in the alphabet's order
    rows = []
    for arm, maps in arms(*maps_of(detector, parts), names, config.ensemble.rings).items():
        scores = maps.flatten(1).amax(1)
        rows.append({"arm": arm, **measure(Prediction(maps, scores), parts.test)})
        if arm == "preset parts":
            top = maps.flatten(1).topk(max(1, maps[0].numel() // 1000), dim=1).values.mean(1)
            auroc = metrics.image_auroc(top, parts.test.labels())
            rows.append({**rows[-1], "arm": TOP, "image_auroc": auroc})
    return rows


def table(rows: list[dict[str, object]]) -> str:
    """Return image AUROC / pixel AUROC / PRO of every arm on every set, in percent: means over seeds."""
    frame = pd.DataFrame(rows)
    order = list(dict.fromkeys(frame["arm"]))
    lines = []
    sets = list(dict.fromkeys(frame["set"]))
    for arm in order:
        cells = []
        for name in sets:
            part = frame[(frame["arm"] == arm) & (frame["set"] == name)]
            image, pixel, pro = (100 * part[k].mean() for k in ("image_auroc", "pixel_auroc", "pro"))
            cells.append(f"{image:.1f} / {pixel:.1f} / {pro:.1f}" if len(part) else "")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    head = [f"| | {' | '.join(sets)} |", "|---|" + "---:|" * len(sets)]
    return "\n".join([*head, *lines])


def main(
    data: Annotated[list[Path] | None, typer.Argument(help="Folders in MVTec layout; by default MiniParts.")] = None,
    out: Annotated[Path, typer.Option("--out")] = Path("runs/ablation.jsonl"),
    size: int = 256,
    seeds: int = 3,
    network: Annotated[str, typer.Option(help="Train these on blemishes as more parts: mlffn,residual.")] = "",
) -> None:
    """Measure what has not been measured yet, and print the table."""
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()] if out.exists() else []
    networks = sorted(filter(None, network.split(",")))
    about = {"size": size, "network": networks, "numerics": NUMERICS}
    done = {(r["set"], r["seed"]) for r in rows if about.items() <= r.items()}
    places = data or [miniparts_path() / name for name in CATEGORIES]
    for seed in range(seeds):
        for path in tqdm(places, f"seed {seed}"):
            if (path.name, seed) in done:
                continue
            new = [{"set": path.name, "seed": seed, **about, **r} for r in run(path, size, seed, networks)]
            with out.open("a", encoding="utf-8") as stream:
                stream.writelines(json.dumps(row) + "\n" for row in new)
            rows += new
    print(table([r for r in rows if about.items() <= r.items()]))


if __name__ == "__main__":
    typer.run(main)
