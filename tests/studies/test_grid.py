"""What a study consists of: the arms, the ratios, and each cell once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlffn_lite import registry
from mlffn_lite.config import Config
from mlffn_lite.datasets.miniparts import CATEGORIES, miniparts_path
from mlffn_lite.errors import ConfigError, DataError
from mlffn_lite.studies import grid
from mlffn_lite.studies.grid import (
    ARMS,
    METHODS,
    RATIOS,
    Place,
    arm_config,
    compare,
    identity,
    methods,
    plan,
    table3,
    table4,
    vary,
)
from mlffn_lite.studies.paper import PAPER

BASE = grid.study_config("tiny")
PLACE = {"bolts": Place(Path("/data/bolts"), "f00", {}), "nuts": Place(Path("/data/nuts"), "f01", {})}


@pytest.mark.parametrize("preset", ["tiny", "small", "parts", "paper"])
@pytest.mark.parametrize(
    ("arm", "expected"),
    [  # self-calibration, texture, score map, weights of score and consistency
        ("baseline", (False, False, "distance", 0.0, 0.0)),
        ("+self_calibration", (True, False, "distance", 0.0, 0.0)),
        ("+stl", (True, True, "distance", 0.0, 0.0)),
        ("+score_constraint", (True, True, "learned", 1.0, 0.0)),
        ("+consistency", (True, True, "learned", 1.0, 1.0)),
    ],
)
def test_each_arm_is_the_one_before_and_its_component(preset: str, arm: str, expected: tuple[Any, ...]) -> None:
    config = arm_config(grid.study_config(preset), arm)
    model, loss = config.model, config.loss
    assert (model.self_calibration, model.texture, model.score, loss.score, loss.consistency) == expected
    assert (config.method, config.pseudo.ratio, loss.feature) == ("mlffn", 0.5, 1.0)


def test_a_study_has_the_papers_method_and_generators_and_one_small_budget() -> None:
    assert grid.study_config("parts") == grid.study_config("small") == Config.preset("small")
    assert Config.preset("small").pseudo == Config().pseudo
    assert grid.study_config("parts", "compare") == Config.preset("parts")
    small = grid.study_config("small", small=True)
    assert small == Config.preset("small", **grid.SMALL["table4"]) == grid.study_config("small", "table3", small=True)
    assert grid.study_config("parts", "compare", small=True) == Config.preset("parts", data={"size": 128})


def test_the_columns_of_table_3_differ_in_the_ratio_alone() -> None:
    configs = [Config().replace(**c) for c in table3(BASE).columns.values()]
    assert list(table3(BASE).columns) == ["0 %", "5 %", "25 %", "50 %", "75 %", "100 %"]
    assert [c.pseudo.ratio for c in configs] == list(RATIOS) == [0, 0.05, 0.25, 0.5, 0.75, 1]
    assert {c.replace(pseudo={"ratio": 0.5}).to_toml() for c in configs} == {configs[3].to_toml()}


def test_tables_1_and_2_compare_each_method_with_the_papers_own() -> None:
    grid = methods(BASE, "tiny")
    assert list(grid.columns) == list(METHODS)
    assert [c["method"] for c in grid.columns.values()] == list(METHODS)
    assert list(grid.steps) == [(m, "mlffn") for m in METHODS if m != "mlffn"]
    # What a method's run is called does not depend on the table that asked for it.
    other = compare(BASE, ["padim", "mlffn"])
    assert {c.name for c in plan([other], PLACE, [0])} <= {c.name for c in plan([grid], PLACE, [0])}
    assert set(METHODS) - set(PAPER["methods"]) == {"efficientad"}
    assert set(PAPER["methods"]) - set(METHODS) == {"mf"}


def test_half_and_half_is_the_full_arm_and_runs_once() -> None:
    tables = [table3(BASE), table4(BASE)]
    assert tables[0].columns["50 %"] == tables[1].columns["+consistency"]
    assert tables[0].setting == tables[1].setting
    both = plan(tables, PLACE, [0, 4])
    assert len(both) == len({c.name for c in both}) == 2 * 2 * (6 + 5 - 1)
    apart = [c.name for t in tables for c in plan([t], PLACE, [0, 4])]
    assert len(apart) == 2 * 2 * (6 + 5)
    assert {c.name for c in both} == set(apart)
    assert [c.label for c in both[:10]] == [*tables[0].columns, *list(ARMS)[:-1]]


def test_cells_come_seed_by_seed_with_all_that_they_need() -> None:
    cells = plan([table4(BASE, "tiny")], PLACE, [3, 1], 2)
    assert [c.seed for c in cells] == [3] * 10 + [1] * 10
    assert [Path(c.data).name for c in cells[:10]] == ["bolts"] * 5 + ["nuts"] * 5
    assert [c.label for c in cells[:5]] == list(ARMS)
    first = cells[0]
    assert (first.method, first.fingerprint, first.threads) == ("mlffn", "f00", 2)
    assert Config().replace(**first.config) == arm_config(BASE, "baseline").replace(train={"seed": 3})


def test_methods_side_by_side_share_one_configuration() -> None:
    base = Config.preset("parts")
    found = compare(base, registry.names("methods"), "parts")
    assert list(found.columns)[:5] == ["mlffn", "density", "memory", "residual", "ensemble"]
    assert set(METHODS) < set(found.columns)
    assert {identity({**c, "method": ""}) for c in found.columns.values()} == {
        identity({**base.to_dict(), "method": ""})
    }
    assert found.steps == [(m, "mlffn") for m in registry.names("methods")[1:]]
    assert [c.method for c in plan([found], PLACE, [0])][: len(found.columns)] == list(found.columns)


@pytest.mark.parametrize("methods", [[], ["padim", "padim"]])
def test_methods_must_be_named_once(methods: list[str]) -> None:
    with pytest.raises(ConfigError, match="must name each method once; there are mlffn, density"):
        compare(BASE, methods)


def test_unknown_methods_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown method 'magic'; choose from mlffn, density"):
        compare(BASE, ["padim", "magic"])
    with pytest.raises(ConfigError, match="cannot import the method 'nowhere:Own'"):
        vary(BASE, ["nowhere:Own"], ["loss.gamma=1,2"])


def test_values_come_in_the_order_given() -> None:
    found = vary(BASE, ["mlffn"], ["loss.gamma=2.5,5,1"], "tiny")
    assert (found.name, found.label) == ("loss.gamma", "tiny")
    assert list(found.columns) == ["loss.gamma=2.5", "loss.gamma=5", "loss.gamma=1"]
    assert [c["loss"]["gamma"] for c in found.columns.values()] == [2.5, 5, 1]
    assert found.steps == [("loss.gamma=2.5", "loss.gamma=5"), ("loss.gamma=5", "loss.gamma=1")]


def test_several_keys_and_methods_are_their_product_and_only_neighbours_are_compared() -> None:
    axes = ["density.strides=[8],[8,16]", "loss.pairing=random,mean"]
    found = vary(BASE, ["mlffn", "padim"], axes)
    assert found.name == "density.strides+loss.pairing"
    assert len(found.columns) == 8
    assert list(found.columns)[1] == "mlffn, density.strides=[8], loss.pairing=mean"
    last = found.columns["padim, density.strides=[8,16], loss.pairing=mean"]
    assert (last["method"], last["density"]["strides"], last["loss"]["pairing"]) == ("padim", [8, 16], "mean")
    assert len(found.steps) == 12  # the edges of a cube
    for before, after in found.steps:
        assert sum(a != b for a, b in zip(before.split(", "), after.split(", "), strict=True)) == 1


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ([], "--vary must name each key once"),
        (["loss.gamma=1", "loss.gamma=2"], "--vary must name each key once"),
        (["loss.gamma"], "cannot vary 'loss.gamma'; write section.key=1,2,3"),
        (["loss.gamma=1,1"], "each value once"),
        (["method=padim,mlffn"], "methods, seeds and device are options"),
        (["train.seed=1,2"], "methods, seeds and device are options"),
        (["loss.gamma=1,1.0"], "loss.gamma=1 and loss.gamma=1.0 are the same configuration"),
        (["loss.gama=1,2"], "loss.gama"),
        (["loss.gamma=1,,2"], "loss.gamma"),
    ],
)
def test_what_cannot_be_varied(axes: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        vary(BASE, ["mlffn"], axes)


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"texture": False}},
        {"model": {"self_calibration": False}},
        {"loss": {"consistency": 2.0}},
        {"loss": {"score": 0.5}},
        {"model": {"score": "distance"}, "loss": {"score": 0.0, "consistency": 0.0}},
        {"pseudo": {"ratio": 0.3}},
        {"method": "padim"},
    ],
)
def test_what_a_study_varies_cannot_be_set(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"vary .*take them out of --set"):
        table4(BASE.replace(**change))


def test_what_every_column_has_cannot_be_set() -> None:
    with pytest.raises(ConfigError, match=r"train\.seed is every column's; give --seeds"):
        table3(BASE.replace(train={"seed": 7}))
    with pytest.raises(ConfigError, match=r"unknown arm '\+magic'; choose one of baseline, \+self_calibration"):
        arm_config(BASE, "+magic")


@settings(max_examples=20)
@given(st.integers(0, 2**31 - 1), st.sampled_from(["auto", "cpu", "cuda:1"]), st.integers(32, 512))
def test_a_column_is_what_all_seeds_and_devices_share(seed: int, device: str, size: int) -> None:
    config = BASE.replace(data={"size": size})
    other = config.replace(train={"seed": seed, "device": device})
    assert identity(config.to_dict()) == identity(other.to_dict())
    assert identity(config.replace(data={"size": size + 1}).to_dict()) != identity(config.to_dict())
    assert table4(config).setting == table4(config.replace(train={"device": device})).setting


@pytest.mark.parametrize(
    ("text", "seeds"), [("1", [0]), ("3", [0, 1, 2]), ("0,1", [0, 1]), ("7,2", [7, 2]), (" 4 , 0", [4, 0])]
)
def test_seeds(text: str, seeds: list[int]) -> None:
    assert grid.parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "0", "-1", "two", "1.5", "1,", "1,x", "1,1", "2,-3", "1;2", "0x2", "nan"])
def test_seeds_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--seeds .* must"):
        grid.parse_seeds(text)


@given(st.lists(st.integers(0, 2**31 - 1), min_size=2, max_size=8, unique=True))
def test_a_list_of_seeds_is_read_as_written(seeds: list[int]) -> None:
    assert grid.parse_seeds(",".join(map(str, seeds))) == seeds


def test_the_bundled_sets_are_the_default() -> None:
    assert grid.find_data([]) == [miniparts_path() / name for name in CATEGORIES]
    assert grid.find_data([], ["weave"]) == [miniparts_path() / "weave"]


def test_categories_and_folders_of_them(parts: Path, tmp_path: Path) -> None:
    for name in ("nuts", "bolts", "notes"):
        (tmp_path / name / ("train" if name != "notes" else "")).mkdir(parents=True, exist_ok=True)
    assert grid.find_data([parts]) == [parts]
    assert grid.find_data([tmp_path]) == [tmp_path / "bolts", tmp_path / "nuts"]
    assert grid.find_data([parts, tmp_path / "nuts"]) == [parts, tmp_path / "nuts"]
    assert grid.find_data([tmp_path], ["nuts", "bolts", "nuts"]) == [tmp_path / "nuts", tmp_path / "bolts"]
    with pytest.raises(ConfigError, match="unknown category 'notes'; there are bolts, nuts"):
        grid.find_data([tmp_path], ["nuts", "notes"])
    with pytest.raises(ConfigError, match="--categories names none; there are bolts, nuts"):
        grid.find_data([tmp_path], [])
    assert grid.find_data([tmp_path], source="own:Open") == [tmp_path]  # what is in it is the source's own matter
    with pytest.raises(DataError, match="holds no category"):
        grid.find_data([tmp_path / "nuts" / "train"])
    with pytest.raises(DataError, match="does not exist or is not a folder"):
        grid.find_data([parts, tmp_path / "gone"])


def test_places_carry_what_identifies_the_data(parts: Path, tmp_path: Path) -> None:
    twin = Path(shutil.copytree(parts, tmp_path / "twin"))
    places = grid.open_places([parts, twin], BASE)
    assert list(places) == ["parts", "twin"]
    assert places["parts"].fingerprint == places["twin"].fingerprint  # contents count, not where they are
    assert len(places["parts"].digests) == 12 + 8 + 4  # masks too
    (twin / "ground_truth/scratch/002_mask.png").write_bytes((parts / "ground_truth/scratch/001_mask.png").read_bytes())
    changed = grid.open_places([twin], BASE)["twin"]
    assert changed.fingerprint != places["twin"].fingerprint
    differing = [k for k in changed.digests if changed.digests[k] != places["twin"].digests[k]]
    assert differing == ["ground_truth/scratch/002_mask.png"]
    with pytest.raises(DataError, match="same name"):
        grid.open_places([parts, shutil.copytree(parts, tmp_path / "other" / "parts")], BASE)
