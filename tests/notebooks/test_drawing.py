"""What drew MiniParts: the committed pictures are what it draws, and the masks are where the defects are."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from course.miniparts import COUNTS, VISIBLE, difficulty, drawing, files, names, render
from course.miniparts.__main__ import main
from mlffn_lite.datasets.miniparts import CATEGORIES, MANIFEST, verify_manifest
from mlffn_lite.errors import DataError

BUNDLED = Path(__file__).resolve().parents[2] / "data" / "miniparts"
DEFECTS = [(category, defect) for category, defects in CATEGORIES.items() for defect in defects]


def read(path: Path, mode: str = "RGB") -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert(mode))


def tiny(root: Path, monkeypatch: pytest.MonkeyPatch, **options: object) -> Path:
    monkeypatch.setattr(names, "COUNTS", {"train": 2, "good": 1, "defect": 1})
    files.generate(root, categories=["pills"], size=32, progress=False, **options)  # type: ignore[arg-type]
    return root


@pytest.mark.parametrize(
    ("category", "split", "defect", "index"),
    [
        ("weave", "train", "good", 0),
        ("weave", "test", "fibre", 3),
        ("flange", "train", "good", 59),
        ("flange", "test", "rust", 6),
        ("pills", "test", "good", 19),
        ("pills", "test", "crack", 9),
    ],
)
def test_redrawn_pictures_equal_the_committed_ones(category: str, split: str, defect: str, index: int) -> None:
    image, mask = render(category, split, defect, index)
    committed = read(BUNDLED / category / split / defect / f"{index:03d}.png")
    # Another platform's libm may round a pixel in a thousand to the next colour of the grid.
    assert np.mean((image != committed).any(-1)) <= 1e-3
    assert np.abs(image.astype(int) - committed).max() <= 12
    if defect != "good":
        path = BUNDLED / category / "ground_truth" / defect / f"{index:03d}_mask.png"
        assert np.mean(mask != (read(path, "L") > 0)) <= 1e-3


# --- pictures and masks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("category", "defect"), DEFECTS)
def test_picture_differs_from_its_twin_inside_the_mask_only(category: str, defect: str) -> None:
    for index in range(2):
        image, mask = render(category, "test", defect, index)
        twin, empty = render(category, "test", defect, index, twin=True)
        assert not empty.any()
        change = np.abs(image.astype(float) - twin).max(-1)
        # Storing rounds to steps: outside the mask a pixel moves by VISIBLE and a step or two, and few do at all.
        assert change[mask].mean() > VISIBLE
        assert np.mean(change[~mask]) < 0.5
        assert np.percentile(change[~mask], 99.5) <= VISIBLE + 8
        assert change[mask].mean() > 10 * change[~mask].mean()


def test_mask_is_the_visible_change_before_grain() -> None:
    flawless = np.full((20, 20, 3), 90.0)
    flawed = flawless.copy()
    flawed[5:9, 5:9, 1] += VISIBLE + 0.1  # one channel is enough
    flawed[5:9, 9:12] += VISIBLE - 0.1  # not visible
    flawed[5:9, 12:15] -= 50  # near enough that the gap is closed
    flawed[0, 0] += 50  # a speck
    mask = drawing.visible_change(flawed, flawless, VISIBLE)
    expected = np.zeros((20, 20), bool)
    expected[5:9, 5:15] = True
    np.testing.assert_array_equal(mask, expected)
    assert not drawing.visible_change(flawless, flawless, VISIBLE).any()


def test_mask_may_touch_the_border() -> None:
    flawed = np.zeros((16, 16, 3))
    flawed[:, :3] = 50
    np.testing.assert_array_equal(
        drawing.visible_change(flawed, np.zeros_like(flawed), VISIBLE)[:, :5].sum(0), [16] * 3 + [0] * 2
    )


def test_stored_colours_fit_a_palette_and_stay_close() -> None:
    rng = np.random.default_rng(0)
    base = np.array([150.0, 120.0, 90.0]) * rng.uniform(0.3, 1.5, (64, 64, 1)) + rng.normal(0, 2, (64, 64, 3))
    stored = drawing.store(base, (3, 0.02))
    assert len(np.unique(stored.reshape(-1, 3), axis=0)) <= 256
    assert np.abs(stored - np.clip(base, 0, 255)).mean() < 3
    noise = rng.uniform(0, 255, (64, 64, 3))  # the worst case still fits
    assert len(np.unique(drawing.store(noise, (3, 0.02)).reshape(-1, 3), axis=0)) <= 256


@pytest.mark.parametrize("category", CATEGORIES)
def test_same_name_same_pixels_other_name_other_pixels(category: str) -> None:
    def draw(split: str = "train", index: int = 5, seed: int = 0) -> np.ndarray:
        return render(category, split, "good", index, seed=seed, size=64)[0]

    first = draw()
    np.testing.assert_array_equal(first, draw())
    for other in (draw(index=6), draw(split="test"), draw(seed=1)):
        assert np.mean(first != other) > 0.3


@pytest.mark.parametrize("size", [65, 128, 512])
def test_any_size_shows_the_same_scene(size: int) -> None:
    image, mask = render("weave", "test", "hole", 5, size=size)
    assert image.shape == (size, size, 3)
    assert mask.shape == (size, size)
    reference, hole = render("weave", "test", "hole", 5)
    assert abs(image.mean() - reference.mean()) < 2
    assert mask.mean() == pytest.approx(hole.mean(), rel=0.35)


def test_normal_pictures_vary_in_light_pose_and_colour() -> None:
    pictures = np.stack([render("flange", "train", "good", i, size=64)[0] for i in range(8)]).astype(float)
    assert 1 < pictures.mean((1, 2, 3)).std() < 15
    assert pictures.std(0).mean() > 3
    assert (pictures.mean((1, 2)) / pictures.mean((1, 2, 3))[:, None]).std(0).max() > 0.002


def test_difficulties_are_a_quarter_hard_half_medium_a_quarter_obvious() -> None:
    for category, defects in CATEGORIES.items():
        levels = Counter(difficulty(category, d, i) for d in defects for i in range(COUNTS["defect"]))
        assert levels == {"hard": 10, "medium": 20, "obvious": 10}


def test_harder_defects_change_less() -> None:
    area: dict[str, list[float]] = {"hard": [], "medium": [], "obvious": []}
    for category, defect in DEFECTS:
        for index in range(COUNTS["defect"]):
            mask = read(BUNDLED / category / "ground_truth" / defect / f"{index:03d}_mask.png", "L")
            area[difficulty(category, defect, index)].append(float(np.mean(mask > 0)))
    hard, medium, obvious = (np.median(area[level]) for level in ("hard", "medium", "obvious"))
    assert hard < medium < obvious


# --- files ------------------------------------------------------------------------------------------------------------


def test_generate_writes_what_render_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tiny(tmp_path / "new" / "set", monkeypatch, seed=3)
    verify_manifest(root)
    assert [p.name for p in root.parent.iterdir()] == ["set"]  # no draft is left behind
    image, mask = render("pills", "test", "spot", 0, seed=3, size=32)
    np.testing.assert_array_equal(read(root / "pills/test/spot/000.png"), image)
    np.testing.assert_array_equal(read(root / "pills/ground_truth/spot/000_mask.png", "L"), mask * 255)


def test_generate_refuses_a_folder_in_use_and_leaves_nothing_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = tmp_path / "used"
    used.mkdir()
    (used / "mine.txt").touch()
    with pytest.raises(DataError, match="not an empty folder"):
        files.generate(used, progress=False)
    assert [p.name for p in used.iterdir()] == ["mine.txt"]

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_save", full_disk)
    with pytest.raises(DataError, match="No space left"):
        tiny(tmp_path / "set", monkeypatch)
    assert [p.name for p in tmp_path.iterdir()] == ["used"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("leather", "test", "good", 0), "no category 'leather'; it has weave"),
        (("weave", "val", "good", 0), "no split 'val'"),
        (("weave", "train", "hole", 0), "no weave/train/hole"),
        (("weave", "test", "rust", 0), "there are good, broken_thread"),
        (("weave", "test", "good", -1), "must be 0 or more"),
    ],
)
def test_unknown_names_are_refused(arguments: tuple[str, str, str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        render(*arguments)


def test_size_and_seed_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="32 to 512"):
        render("weave", "train", "good", 0, size=1024)
    with pytest.raises(DataError, match="seed is -1"):
        render("weave", "train", "good", 0, seed=-1)
    with pytest.raises(DataError, match="32 to 512"):
        files.generate(tmp_path / "set", size=8, progress=False)
    assert not list(tmp_path.iterdir())


def test_command_draws_and_reports_errors_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(names, "COUNTS", {"train": 1, "good": 1, "defect": 0})
    assert main([str(tmp_path / "set"), "--size", "32"]) == 0
    verify_manifest(tmp_path / "set")
    assert sorted(p.name for p in (tmp_path / "set").iterdir()) == sorted((*CATEGORIES, MANIFEST))
    capsys.readouterr()
    assert main([str(tmp_path / "set")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
