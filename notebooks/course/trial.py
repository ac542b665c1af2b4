"""A short training with a part or a loss of one's own, measured against the spread of seeds.

The backbone is frozen and sees every picture once; what is built on it is trained, narrower and shorter than in the
preset ``small``, so that a run takes a few seconds. Differences hold for this size; a verdict on the method needs the
studies. ``python -m course.trial`` measures the unchanged network anew.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from mlffn_lite.backbones import build_backbone
from mlffn_lite.config import Config
from mlffn_lite.datasets import AnomalyFolder
from mlffn_lite.datasets.miniparts import miniparts_path
from mlffn_lite.features import upsample
from mlffn_lite.losses import resize_mask, total_loss
from mlffn_lite.metrics import image_auroc, pro
from mlffn_lite.network import MLFFN
from mlffn_lite.pseudo import PseudoAnomalies
from mlffn_lite.training import build_optimizer

BASELINE = Path(__file__).with_name("trial.csv")
"""Image AUROC and PRO of the unchanged network, a row per seed."""

SEEDS = (0, 1, 2)
Stages = list[Tensor]
Loss = Callable[[Tensor, Tensor, Tensor, torch.Generator], Tensor]


class Trial:
    """Train the network on a part at 128 px, with or without a change.

    Parameters
    ----------
    pseudo : PseudoAnomalies, optional
        What makes half of the training images anomalous; by default blemishes.
    prepare : callable, optional
        ``(stages, good) -> stages``: what is done to the backbone's stages, lists of (B, C, h, w), before the network
        sees them; ``good`` are those of all good training images.
    category : str
        Which part of MiniParts; :meth:`compare` knows the unchanged network on ``weave``.
    """

    batches, batch, steps, width = 12, 16, 40, 32

    def __init__(
        self,
        pseudo: PseudoAnomalies | None = None,
        prepare: Callable[[Stages, Stages], Stages] | None = None,
        category: str = "weave",
    ) -> None:
        model, train = {"width": self.width}, {"steps": self.steps, "device": "cpu"}
        self.config = Config.preset("small", data={"size": 128}, model=model, train=train)
        self.backbone = build_backbone(self.config.model.backbone, self.config.model.weights).set_mode("frozen").eval()
        parts = AnomalyFolder(miniparts_path() / category, size=128)
        good, self.test = parts.train.images(), parts.test
        pseudo, draws = pseudo or PseudoAnomalies(0.5, {"blemish": 1.0}), torch.Generator().manual_seed(0)
        chosen = [torch.randperm(len(good), generator=draws)[: self.batch] for _ in range(self.batches)]
        changed, masks = zip(*(pseudo(good[k], generator=draws) for k in chosen), strict=True)
        known = self._stages(good) if prepare else []
        prepared = prepare or (lambda stages, _: stages)
        self._train = [(prepared(self._stages(x), known), mask) for x, mask in zip(changed, masks, strict=True)]
        self._seen = prepared(self._stages(self.test.images()), known)

    @torch.no_grad()
    def _stages(self, images: Tensor) -> Stages:
        images = images if images.is_floating_point() else images.float() / 255
        return [torch.cat(stage) for stage in zip(*(self.backbone(x) for x in images.split(20)), strict=True)]

    def run(
        self, seed: int, change: Callable[[MLFFN], object] | None = None, *, loss: Loss | None = None
    ) -> dict[str, float]:
        """Train once and return image AUROC and PRO on the test images.

        Parameters
        ----------
        seed : int
            Of the first weights, the order of the batches and the pairs of the losses.
        change : callable, optional
            Puts parts of one's own into the network that it is given.
        loss : callable, optional
            ``(features, score, mask, generator) -> scalar``, minimised in place of (8).
        """
        torch.manual_seed(seed)
        network = MLFFN(self.config.model, self.config.texture, backbone=self.backbone)
        if change is not None:
            torch.manual_seed(seed)
            change(network)
        draws, train = torch.Generator().manual_seed(seed), self.config.train
        optimizer = build_optimizer(network, train)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, train.lr, train.steps)
        rounds = -(-train.steps // self.batches)
        order = torch.cat([torch.randperm(self.batches, generator=draws) for _ in range(rounds)])
        network.train()
        for k in order[: train.steps].tolist():
            stages, mask = self._train[k]
            output = network.head(stages)
            height, width = output.score.shape[-2:]
            marked = resize_mask(mask, (height, width))
            optimizer.zero_grad()
            (loss or self._total)(output.features, output.score, marked, draws).backward()
            nn.utils.clip_grad_norm_(network.heads(), train.clip)
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            maps = upsample(network.eval().head(self._seen).score, (128, 128)).view(-1, 128, 128)
        overlap = pro(maps, self.test.masks())
        return {"image_auroc": image_auroc(maps.flatten(1).amax(1), self.test.labels()), "pro": overlap}

    def _total(self, features: Tensor, score: Tensor, mask: Tensor, draws: torch.Generator) -> Tensor:
        return total_loss(features, score, mask, self.config.loss, generator=draws).total

    def compare(self, change: Callable[[MLFFN], object] | None = None, *, loss: Loss | None = None) -> pd.DataFrame:
        """Train with three seeds and set the means beside those of the unchanged network.

        Returns
        -------
        DataFrame
            A row per metric: ``unchanged`` and ``changed``, means in percent; ``difference``; ``noise``, twice the
            standard error of a difference between such means; ``verdict``.
        """
        runs = pd.DataFrame([self.run(seed, change, loss=loss) for seed in SEEDS])
        return judge(pd.read_csv(BASELINE).set_index("seed"), runs)


def judge(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Compare the means of runs, a row each, with the spread of the runs before; see :meth:`Trial.compare`."""
    table = pd.DataFrame({"unchanged": 100 * before.mean(), "changed": 100 * after.mean()})
    table["difference"] = table["changed"] - table["unchanged"]
    table["noise"] = 200 * before.std() * (1 / len(before) + 1 / len(after)) ** 0.5
    said = (table["difference"].abs() > table["noise"]).map({True: "more than seeds do", False: "within the spread"})
    return table.round(1).assign(verdict=said)


def main() -> None:
    """Measure the unchanged network with six seeds."""
    trial = Trial()
    rows = [{"seed": seed, **trial.run(seed)} for seed in range(6)]
    pd.DataFrame(rows).round(4).to_csv(BASELINE, index=False, lineterminator="\n")


if __name__ == "__main__":
    main()
