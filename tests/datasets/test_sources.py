"""Every way into the library gives the same pixels, splits and labels; what cannot be used is named in one line."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from mlffn_lite.config import DataConfig
from mlffn_lite.datasets.folder import AnomalyFolder, Parts, Sample, read_image
from mlffn_lite.datasets.sources import iterate_batches, open_source, to_batch
from mlffn_lite.errors import ConfigError, DataError

DATA = DataConfig(size=32)
KEEP = DataConfig(size=64, aspect="keep")
SHAPE = (24, 40)


def pixels(seed: int, height: int = 40, width: int = 30) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def chw(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).permute(2, 0, 1)


def marked(top: int = 5) -> np.ndarray:
    mask = np.zeros((40, 30), bool)
    mask[top : top + 9, 4:15] = True
    return mask


class Listed(Dataset[Any]):
    """A map-style Dataset that counts how often an item is fetched."""

    def __init__(self, items: list[Any]) -> None:
        self.items, self.fetched = items, 0

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        self.fetched += 1
        return self.items[index]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([pixels(0)])


# --- one image, every way --------------------------------------------------------------------------------------------


@given(hnp.arrays(np.uint8, st.tuples(st.integers(8, 23), st.integers(8, 40), st.just(3))))
def test_the_same_pixels_give_the_same_image_by_every_way(tmp_path_factory: Any, array: np.ndarray) -> None:
    path = save(tmp_path_factory.getbasetemp() / "same.png", array)
    expected = read_image(path, SHAPE)[None]
    ways: dict[str, Any] = {
        "path": path,
        "str": str(path),
        "PIL": Image.fromarray(array),
        "opened": Image.open(path),
        "array": array,
        "batch of arrays": array[None],
        "RGBA": np.dstack([array, array[..., 0]]),
        "float": array / 255,
        "float32": (array / 255).astype(np.float32),
        "16 bit": array.astype(np.uint16) * 257,
        "tensor": chw(array),
        "batch": chw(array)[None],
        "float tensor": chw(array).double() / 255,
        "strided": np.ascontiguousarray(array[:, ::-1])[:, ::-1],
        "labelled": Listed([(array, 1)]),
        "dict": [{"image": path}],
        "generator": (p for p in [path]),
    }
    for name, way in ways.items():
        batch = to_batch(way, SHAPE)
        assert batch.dtype == torch.uint8, name
        assert torch.equal(batch, expected), name


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("kind", ["grey", "bool", "16 bit", "float", "alpha"])
def test_grey_arrays_equal_their_files(tmp_path: Path, kind: str, suffix: str) -> None:
    grey = pixels(3)[..., 0]
    array = {
        "grey": grey,
        "bool": grey > 99,
        "16 bit": pixels(4)[..., 1].astype(np.uint16) * 256 + grey,
        "float": (grey / 255).astype(np.float32) ** 2,
        "alpha": np.dstack([grey, 255 - grey]),
    }[kind]
    if kind == "float" and suffix == "png":
        suffix = "tiff"
    expected = read_image(save(tmp_path / f"a.{suffix}", array), SHAPE)[None]
    ways = [array, [array], torch.from_numpy(array).movedim(-1, 0) if array.ndim == 3 else torch.from_numpy(array)]
    if array.ndim == 2:
        ways += [array[..., None], torch.from_numpy(array)[None], array[None], [torch.from_numpy(array)[None]]]
    for way in ways:
        assert torch.equal(to_batch(way, SHAPE), expected)


def test_float_tensors_at_the_size_keep_their_precision_beside_others() -> None:
    exact = torch.rand(2, 3, *SHAPE, generator=torch.Generator().manual_seed(0))
    assert torch.equal(to_batch(exact, SHAPE), exact)
    assert torch.equal(to_batch(list(exact.double()), SHAPE), exact)
    assert to_batch(exact.half(), SHAPE).dtype == torch.float32
    assert torch.equal(to_batch(exact.bfloat16(), (8, 8)), to_batch(exact.bfloat16().float(), (8, 8)))
    mixed = to_batch([exact[0], pixels(0)], SHAPE)
    assert torch.equal(mixed[0], exact[0])
    assert torch.equal(mixed[1] * 255, to_batch(pixels(0), SHAPE)[0].float())
    assert to_batch(exact, (16, 16)).dtype == torch.uint8


def test_a_pil_image_is_turned_upright_and_left_as_it_was(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels(1)).save(tmp_path / "turned.png", exif=exif)
    opened = Image.open(tmp_path / "turned.png")
    assert torch.equal(to_batch([opened, opened], SHAPE)[1], read_image(tmp_path / "turned.png", SHAPE))
    assert opened.size == (30, 40)
    assert opened.getexif()[0x0112] == 6


def test_batches_are_lazy_and_empty_ones_have_a_shape(tmp_path: Path) -> None:
    for i in range(5):
        save(tmp_path / f"{i}.png", pixels(i))
    whole = to_batch(tmp_path, SHAPE)
    assert [len(b) for b in iterate_batches(tmp_path, SHAPE, 2)] == [2, 2, 1]
    assert torch.equal(torch.cat(list(iterate_batches(str(tmp_path), SHAPE, 2))), whole)
    assert torch.equal(whole[3], read_image(tmp_path / "3.png", SHAPE))
    data = Listed([pixels(i) for i in range(5)])
    batches = iterate_batches(data, SHAPE, 2)
    next(batches)
    assert data.fetched == 2
    assert torch.equal(to_batch(AnomalyFolder(tmp_path, shape=SHAPE).train, SHAPE), whole)
    nothing: Any
    for nothing in ([], (), np.zeros((0, 9, 9, 3)), torch.zeros(0, 3, *SHAPE), Listed([])):
        assert to_batch(nothing, SHAPE).shape == (0, 3, *SHAPE)
        assert list(iterate_batches(nothing, SHAPE, 4)) == []


@pytest.mark.parametrize("door", [lambda x: to_batch(x, SHAPE), lambda x: open_source(x, DATA)], ids=["predict", "fit"])
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.full((9, 9, 3), np.nan), r"image 0000: float images must lie in \[0, 1\], without NaN"),
        (torch.full((1, 3, *SHAPE), 1.5), r"image 0000: float images must lie in \[0, 1\]"),
        ([pixels(0), pixels(1) / -255], r"image 0001: float images must lie in"),
        (torch.full((2, 3, *SHAPE), -1, dtype=torch.int8), "int8 values have no known range"),
        (pixels(0).astype(np.int64), "int64 values have no known range; give uint8, uint16, or float"),
        (pixels(0).astype(complex), "complex128 values have no known range"),
        (pixels(0, 7, 9), "9x7 pixels; each side must have at least 8"),
        (torch.zeros(3, 0, 0), "0x0 pixels; each side"),
        (pixels(0).transpose(2, 0, 1)[None], r"neither an array \(H, W, 3\) nor a tensor .* of shape \(3, 40, 30\)"),
        (torch.zeros(2, 40, 30, 3), r"nor a tensor \(3, H, W\), but of shape \(40, 30, 3\)"),
        (torch.zeros(5, 40, 30), r"of shape \(5, 40, 30\)"),
        ([np.zeros(9)], r"of shape \(9,\)"),
        (torch.zeros(2, 1, 9, 9), r"a batch of grey images \(2, 1, 9, 9\); repeat the channel"),
        (np.zeros((2, 9, 9, 1)), r"a batch of grey images \(2, 9, 9, 1\)"),
        (np.zeros((1, 2, 9, 9, 3)), "an array of 5 axes holds no images; give a folder"),
        (np.zeros(1), "float64 is no image; give a folder"),
        ([pixels(0), None], "image 0001: NoneType is no image"),
        ([[]], "list is no image"),
        (None, "NoneType holds no images; give a folder"),
        (7, "int holds no images"),
        ({"image": pixels(0)}, "dict holds no images"),
        ([{"picture": pixels(0)}], "the dict has no key 'image'"),
        (Stream(), "Stream holds no images; .*map-style Dataset"),
        (Image.new("RGB", (9, 7)), "image 0000: 9x7 pixels"),
        (Image.new("LAB", (9, 9)), "mode LAB"),
        (["nowhere.png"], "nowhere.png: cannot be read"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_bad_images_are_named_in_one_short_line(door: Callable[[Any], Any], images: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        door(images)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_faults_of_a_dataset_are_named(tmp_path: Path) -> None:
    class Broken(Listed):
        def __getitem__(self, index: int) -> Any:
            raise KeyError(f"no {index}\nsecond line")

    for door in (lambda x: to_batch(x, SHAPE), lambda x: open_source(x, DATA)):
        with pytest.raises(DataError, match=r"image 0000: cannot be fetched \(KeyError: 'no 0.*") as caught:
            door(Broken([1]))
        assert "\n" not in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no image; give image files"):
        to_batch(tmp_path / "empty", SHAPE)


# --- sources ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    root = tmp_path / "part"
    for i in range(3):
        save(root / "train" / "good" / f"{i}.png", pixels(i))
    save(root / "test" / "dent" / "0.png", pixels(10))
    save(root / "test" / "good" / "0.png", pixels(11))
    save(root / "test" / "scratch" / "0.png", pixels(12))
    save(root / "ground_truth" / "scratch" / "0.png", marked())
    return root


def same(a: Parts, b: Parts) -> bool:
    return all(
        torch.equal(x.images(), y.images())
        and torch.equal(x.masks(), y.masks())
        and x.defects == y.defects
        and torch.equal(x.has_mask, y.has_mask)
        for x, y in ((a.train, b.train), (a.test, b.test))
    )


@pytest.mark.parametrize("data", [DATA, KEEP], ids=["square", "keep"])
@pytest.mark.parametrize("cache_bytes", [0, 2**30])
def test_pairs_of_every_kind_equal_the_folder(mvtec: Path, data: DataConfig, cache_bytes: int) -> None:
    expected = open_source(mvtec, data)
    assert expected.shape == ((32, 32) if data is DATA else (80, 48))
    train = [mvtec / "train" / "good" / f"{i}.png" for i in range(3)]
    test = [(mvtec / "test" / "good" / "0.png", 0), (mvtec / "test" / "dent" / "0.png", "dent")]
    test.append((mvtec / "test" / "scratch" / "0.png", mvtec / "ground_truth" / "scratch" / "0.png", "scratch"))  # type: ignore[arg-type]
    truth = marked()
    dicts = [
        {"image": chw(pixels(11)), "label": torch.tensor(0)},
        {"image": chw(pixels(10)), "label": 1, "mask": None, "defect": "dent"},
        {"image": chw(pixels(12)), "mask": torch.from_numpy(truth)[None].byte(), "defect": "scratch"},
    ]
    arrays = np.stack([pixels(i) for i in range(3)])
    tuples = [(pixels(11), truth * 0, 0), (pixels(10), np.int64(1), "dent"), (pixels(12), "scratch", truth * 255)]
    for pair in ((train, test), (arrays, Listed(dicts)), (torch.stack([chw(a) for a in arrays]), Listed(tuples))):
        parts = open_source(pair, data, cache_bytes=cache_bytes)
        assert parts.shape == expected.shape
        order = [expected.test.defects.index(d) for d in ("good", "dent", "scratch")]
        again = Parts(expected.root, expected.train, expected.test.subset(order))
        assert same(parts, again)
        assert not parts.overlap
        assert len(parts.digests()) == 6
        assert len(parts.digests(test=False)) == 3
    assert same(open_source((mvtec, mvtec), data), expected)


def test_one_labelled_dataset_gives_both_splits() -> None:
    items = [(pixels(0), 1), (pixels(1), 0), pixels(2), (pixels(3), 2), (pixels(4), None), (pixels(5), 0.0)]
    for source in (items, tuple(items), Listed(items)):
        parts = open_source(source, DATA)
        assert [p.name for p in parts.train.paths] == ["0002", "0004", "0001", "0005"]
        assert [p.name for p in parts.test.paths] == ["0001", "0005", "0000", "0003"]
        assert parts.test.defects == ["good", "good", "defect", "defect2"]
        assert parts.test.labels().tolist() == [0, 0, 1, 1]
        assert parts.test.has_mask.tolist() == [True, True, False, False]
        assert parts.overlap
        assert torch.equal(parts.test.images(), to_batch([pixels(i) for i in (1, 5, 0, 3)], (32, 32)))
        assert parts.train.images()[2:].data_ptr() == parts.test.images().data_ptr()  # no pixel is kept twice
    assert not open_source([pixels(0), pixels(1)], DATA).overlap
    assert len(open_source([pixels(0)], DATA).test) == 0
    bad = open_source([(pixels(0), 1)], DATA)
    assert (len(bad.train), len(bad.test), bad.overlap) == (0, 1, False)


def test_samples_and_splits_are_taken(mvtec: Path) -> None:
    parts = AnomalyFolder(mvtec, size=32)
    again = open_source((parts.train, parts.test), DATA)
    assert torch.equal(again.train.images(), parts.train.images())
    assert torch.equal(again.test.masks()[2], parts.test.masks()[2])
    assert again.test.defects == ["good", "dent", "scratch"]
    assert again.test.has_mask.tolist() == [True, False, True]
    assert isinstance(parts.test[0], Sample)
    assert len(open_source(parts.test[1], DATA).train) == 1


def test_keep_takes_the_good_images_median_aspect() -> None:
    wide = [np.zeros((40, 100, 3), np.uint8)] * 3
    assert open_source(wide, KEEP).shape == (48, 96)
    assert open_source([(w, 0) for w in wide] + [(pixels(0, 90, 30), 1)] * 9, KEEP).shape == (48, 96)
    assert open_source([(pixels(0, 90, 30), 1)], KEEP).shape == (112, 32)
    assert open_source((wide, [(pixels(0, 90, 30), 1)]), KEEP).test.shape == (48, 96)
    assert open_source(wide, KEEP, shape=SHAPE).train.images().shape == (3, 3, *SHAPE)


def test_an_opened_source_of_another_size_is_refused(mvtec: Path) -> None:
    square = AnomalyFolder(mvtec, size=64)
    assert open_source(square, DataConfig(size=64)) is square
    message = (
        r"part was opened at .* \(64, 64\), but data.size=64 and data.aspect=keep ask for \(80, 48\); give the path"
    )
    with pytest.raises(DataError, match=message):
        open_source(square, KEEP)
    with pytest.raises(DataError, match=r"but the detector was fitted to \(80, 48\)"):
        open_source(square, DataConfig(size=64), shape=(80, 48))
    kept = AnomalyFolder(mvtec, size=64, aspect="keep")
    assert open_source(kept, KEEP) is kept
    assert open_source(kept, DATA, shape=(80, 48)) is kept
    memory = open_source([pixels(0)], KEEP)
    assert open_source(memory, KEEP) is memory
    with pytest.raises(DataError, match="list was opened at"):
        open_source(memory, DATA)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ((pixels(0), -1), "'-1' is no label; give 0 for good, 1 or more for a defect"),
        ((pixels(0), 0.5), "'0.5' is no label"),
        ((pixels(0), np.nan), "'nan' is no label"),
        ((pixels(0), [0, 1, 0]), "is no label"),
        ((pixels(0), {"boxes": []}), "is no label"),
        ((pixels(0), 0, "dent"), "label 0 and defect 'dent' contradict each other"),
        ((pixels(0), 1, "good"), "label 1 and defect 'good' contradict"),
        ((pixels(0), 0, marked()), "it is labelled good, but its mask marks defects"),
        ((pixels(0), 1, marked()[:39]), "the mask has 30x39 pixels, its image 30x40"),
        ((pixels(0), 1, np.zeros((40, 30, 3))), r"a mask must be \(H, W\) numbers, got ndarray \(40, 30, 3\)"),
        ((pixels(0), Path("nowhere.png")), "nowhere.png: cannot be read"),
        ({"image": pixels(0), "mask": 3}, r"a mask must be \(H, W\)"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_bad_targets_are_named_or_skipped(item: Any, message: str) -> None:
    with pytest.raises(
        DataError, match=rf"1 of 2 images cannot be used: .*{message}.*; repair or remove them"
    ) as caught:
        open_source([pixels(1), item], DATA)
    assert len(str(caught.value)) < 250
    with pytest.warns(UserWarning, match=f"skipped 1 of 2 images: .*{message}"):
        parts = open_source([pixels(1), item], DATA, skip_bad=True)
    assert torch.equal(parts.train.images(), to_batch(pixels(1), (32, 32)))
    assert to_batch([item], SHAPE).shape == (1, 3, *SHAPE)  # scoring asks for no target


def test_sources_without_what_is_needed(mvtec: Path, tmp_path: Path) -> None:
    def fails(source: Any, message: str, **options: Any) -> None:
        with pytest.raises(DataError, match=message):
            open_source(source, DATA, **options)

    fails([], "there is no image; give a folder")
    fails(tmp_path / "nowhere", "does not exist")
    fails(mvtec / "train" / "good" / "0.png", "is a file; give the folder")
    fails(([(pixels(0), 1)], [(pixels(0), 1)]), "the first source of the pair has no good image")
    fails((mvtec, [pixels(0)]), "the second source of the pair has no labelled image")
    with pytest.warns(UserWarning, match="skipped 1 of 1"):
        fails([pixels(0) / 2], "there is no image that can be used", skip_bad=True)


def test_two_images_are_no_pair(tmp_path: Path) -> None:
    paths = tuple(save(tmp_path / f"{i}.png", pixels(i)) for i in range(2))
    for source in (paths, (pixels(0), pixels(1)), (chw(pixels(0)), chw(pixels(1))), ((pixels(0), 0), (pixels(1), 0))):
        assert torch.equal(open_source(source, DATA).train.images(), to_batch(paths, (32, 32)))
    assert open_source(paths, DATA).root == tmp_path.absolute()
    assert open_source(paths, DATA).train.paths == list(paths)


def test_fingerprints_follow_pixels_labels_and_masks() -> None:
    def prints(*items: Any, data: DataConfig = DATA) -> tuple[str, str]:
        parts = open_source(list(items), data)
        return parts.fingerprint(test=False), parts.fingerprint()

    first = prints(pixels(0), (pixels(1), marked(), 1))
    assert len(first[0]) == 64
    assert prints(chw(pixels(0)), {"image": Image.fromarray(pixels(1)), "mask": marked() * 255}) == first
    assert prints(pixels(0), (pixels(1), marked(), 1), data=KEEP) == first
    changed = pixels(0)
    changed[0, 0, 0] ^= 1
    others = [
        (changed, (pixels(1), marked(), 1)),
        (pixels(0).reshape(30, 40, 3), (pixels(1), marked(), 1)),
        (pixels(0), (pixels(1), marked(6), 1)),
        (pixels(0), (pixels(1), 1)),
        (pixels(0), (pixels(1), marked(), "dent")),
        (pixels(0), (pixels(1), 0)),
        ((pixels(0), 0), (pixels(1), marked(), 1)),
    ]
    found = [prints(*items) for items in others]
    assert len({first[1], *(whole for _, whole in found)}) == 1 + len(others)
    assert [train == first[0] for train, _ in found] == [False, False, True, True, True, False, False]


def test_a_dataset_is_fetched_by_one_thread_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shy(Listed):
        inside = 0

        def __getitem__(self, index: int) -> Any:
            self.inside += 1
            time.sleep(0.001)
            alone, self.inside = self.inside == 1, self.inside - 1
            assert alone, "two at once"
            return super().__getitem__(index)

    data = Shy([pixels(i) for i in range(20)])
    kept = open_source(data, DATA)
    fetched = data.fetched
    kept.train.images()
    assert data.fetched == fetched
    monkeypatch.setattr("mlffn_lite.datasets.folder.fits", lambda _: False)
    lazy = open_source(data, DATA, cache_bytes=0)
    fetched = data.fetched
    assert torch.equal(lazy.train.batch([3, 7])[0], kept.train.batch([3, 7])[0])
    assert data.fetched == fetched + 2


# --- a source of one's own -------------------------------------------------------------------------------------------

EXAMPLE = """
import csv

class Bolts:
    # Rows of a table: the file of a picture, and ok or what is wrong with it.

    def __init__(self, table, **options):
        with open(table) as file:
            states = {table.parent / picture: state for picture, state in csv.reader(file)}
        self.rows = [(picture, "good" if state == "ok" else state) for picture, state in states.items()]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]

def halves(table, **options):
    rows = Bolts(table).rows
    return rows[:2], rows[2:]

def broken(table, **options):
    raise KeyError("column")
"""


@pytest.fixture
def bolts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for i in range(4):
        save(tmp_path / "pictures" / f"{i}.png", pixels(i))
    lines = [f"pictures/{i}.png,{state}\n" for i, state in enumerate(("ok", "ok", "ok", "dent"))]
    (tmp_path / "bolts.csv").write_text("".join(lines))
    (tmp_path / "own_bolts.py").write_text(EXAMPLE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_bolts", raising=False)
    return tmp_path / "bolts.csv"


def test_a_source_of_ones_own_is_named_in_the_configuration(bolts: Path) -> None:
    parts = open_source(bolts, DataConfig(size=32, source="own_bolts:Bolts"))
    assert parts.test.defects == ["good", "good", "good", "dent"]
    assert parts.overlap
    parts = open_source(str(bolts), DataConfig(size=64, aspect="keep", source="own_bolts:halves"))
    assert (parts.shape, len(parts.train), parts.test.defects) == ((80, 48), 2, ["good", "dent"])
    assert torch.equal(parts.train.images()[1], read_image(bolts.parent / "pictures" / "1.png", (80, 48)))
    assert list(parts.digests()) == ["0.png", "1.png", "2.png", "3.png"]
    assert not parts.overlap
    pair = open_source((bolts, bolts), DataConfig(size=32, source="own_bolts:Bolts"))
    assert (len(pair.train), len(pair.test)) == (3, 4)


def test_a_source_that_fails_is_one_line(bolts: Path) -> None:
    with pytest.raises(DataError, match=r"bolts.csv: the source own_bolts:broken failed \(KeyError: 'column'\)"):
        open_source(bolts, DataConfig(source="own_bolts:broken"))
    with pytest.raises(ConfigError, match="own_bolts:Nuts"):
        open_source(bolts, DataConfig(source="own_bolts:Nuts"))
    with pytest.raises(DataError, match=r"nowhere.csv: the source own_bolts:Bolts failed \(FileNotFoundError"):
        open_source(bolts.parent / "nowhere.csv", DataConfig(source="own_bolts:Bolts"))
