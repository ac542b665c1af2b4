"""Known defects: they are the folder's, with their masks, and reach a training by the configuration."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from mlffn_lite.beyond.known_defects import KnownDefects
from mlffn_lite.config import DataConfig
from mlffn_lite.datasets.folder import Split
from mlffn_lite.datasets.miniparts import miniparts_path
from mlffn_lite.datasets.sources import open_source
from mlffn_lite.errors import ConfigError
from mlffn_lite.pseudo import PseudoAnomalies

SIZE = (32, 40)


def flange() -> tuple[Split, Split]:
    parts = open_source(miniparts_path() / "flange", DataConfig(), shape=SIZE)
    return parts.train, parts.test


@pytest.mark.parametrize("folder", [miniparts_path() / "flange", miniparts_path()])
def test_images_are_the_folders_defective_ones_with_their_masks(folder: Path) -> None:
    good, test = flange()
    kind = KnownDefects(folder=str(folder))
    kind.prepare(good)
    known = {(i.numpy().tobytes(), m.numpy().tobytes()) for i, m in zip(test.images(), test.masks(), strict=True)}
    images, masks = kind(good.images()[:30], generator=torch.Generator().manual_seed(0))
    drawn = {
        ((255 * i).round().to(torch.uint8).numpy().tobytes(), m[0].numpy().tobytes())
        for i, m in zip(images, masks, strict=True)
    }
    assert drawn <= known
    assert len(drawn) > 10
    assert masks.flatten(1).any(1).float().mean() > 0.9  # a faint one may vanish at this size


def test_a_share_of_a_batch_is_replaced_and_the_rest_is_left() -> None:
    good, _ = flange()
    pseudo = PseudoAnomalies(0.5, {"defects": 1.0}, {"defects": {"folder": str(miniparts_path())}})
    pseudo.prepare(good)
    before = good.images()[:8]
    after, masks = pseudo(before, generator=torch.Generator().manual_seed(1))
    same = (after == before.float() / 255).flatten(1).all(1)
    assert int(same.sum()) == 4
    assert not masks[same].any()


def test_folders_that_hold_none_are_refused(tmp_path: Path) -> None:
    good, _ = flange()
    shutil.copytree(miniparts_path() / "flange" / "train", tmp_path / "train")
    for folder, words in ((tmp_path / "none", "is no folder"), (tmp_path, "no defective test image")):
        kind = KnownDefects(folder=str(folder))
        kind.prepare(good)
        with pytest.raises(ConfigError, match=words):
            kind(good.images()[:2], generator=torch.Generator())
