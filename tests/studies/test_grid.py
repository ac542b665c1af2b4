"""What a study consists of: the arms, the ratios, and each cell once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlffn_lite.config import Config
from mlffn_lite.datasets.miniparts import CATEGORIES, miniparts_path
from mlffn_lite.errors import ConfigError, DataError
from mlffn_lite.studies import grid
from mlffn_lite.studies.grid import ARMS, RATIOS, Place, arm_config, columns_of, plan, setting_of, study_configs

BASE = grid.study_config("tiny")
PLACE = {"bolts": Place(Path("/data/bolts"), "f00", {}), "nuts": Place(Path("/data/nuts"), "f01", {})}


@pytest.mark.parametrize("preset", ["tiny", "lite", "paper"])
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
    assert (config.pseudo.ratio, loss.feature, model.density) == (0.5, 1.0, 0.0)


def test_a_study_has_the_papers_generators_and_no_density() -> None:
    lite = grid.study_config("lite")
    assert lite.pseudo == Config().pseudo
    assert lite.model.density == 0 < Config.preset("lite").model.density
    small = grid.study_config("lite", small=True)
    assert (small.data.size, small.train.steps) == (128, 160)
    assert small == lite.replace(data={"size": 128}, train={"steps": 160})


def test_the_columns_of_table_3_differ_in_the_ratio_alone() -> None:
    configs = study_configs("table3", BASE)
    assert list(configs) == ["0", "5", "25", "50", "75", "100"]
    assert [c.pseudo.ratio for c in configs.values()] == list(RATIOS) == [0, 0.05, 0.25, 0.5, 0.75, 1]
    assert {c.replace(pseudo={"ratio": 0.5}).to_toml() for c in configs.values()} == {configs["50"].to_toml()}


def test_half_and_half_is_the_full_arm_and_runs_once() -> None:
    assert study_configs("table3", BASE)["50"] == study_configs("table4", BASE)["+consistency"]
    both = plan(["table3", "table4"], PLACE, BASE, [0, 4], "x", 1)
    assert len(both) == len({c.name for c in both}) == 2 * 2 * (6 + 5 - 1)
    apart = [c.name for s in ("table3", "table4") for c in plan([s], PLACE, BASE, [0, 4], "x", 1)]
    assert len(apart) == 2 * 2 * (6 + 5)
    assert {c.name for c in both} == set(apart)


def test_cells_come_seed_by_seed_with_all_that_they_need() -> None:
    cells = plan(["table4"], PLACE, BASE, [3, 1], "tiny", 2)
    assert [c.seed for c in cells] == [3] * 10 + [1] * 10
    assert [Path(c.data).name for c in cells[:10]] == ["bolts"] * 5 + ["nuts"] * 5
    assert [columns_of(c.config)["table4"] for c in cells[:5]] == list(ARMS)
    first = cells[0]
    assert (first.method, first.fingerprint, first.label, first.threads) == ("mlffn", "f00", "tiny", 2)
    assert Config().replace(**first.config) == arm_config(BASE, "baseline").replace(train={"seed": 3})


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"texture": False}},
        {"model": {"self_calibration": False}},
        {"loss": {"consistency": 2.0}},
        {"loss": {"score": 0.5}},
        {"model": {"score": "distance"}, "loss": {"score": 0.0, "consistency": 0.0}},
        {"pseudo": {"ratio": 0.3}},
        {"train": {"seed": 7}},
    ],
)
def test_what_a_study_varies_cannot_be_set(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"vary .*take them out of --set"):
        plan(["table4"], PLACE, BASE.replace(**change), [0], "x", 1)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown arm '\+magic'; choose one of baseline, \+self_calibration"):
        arm_config(BASE, "+magic")
    with pytest.raises(ConfigError, match="unknown study 'table5'; choose one of table3, table4"):
        study_configs("table5", BASE)
    with pytest.raises(ConfigError, match="unknown study 'table1'"):
        plan(["table4", "table1"], PLACE, BASE, [0], "x", 1)


def test_a_stored_configuration_tells_its_columns() -> None:
    for study in grid.STUDIES:
        for column, config in study_configs(study, BASE).items():
            stored = config.replace(train={"seed": 9, "device": "mps"}).to_dict()
            found = columns_of(stored)
            assert found[study] == column
            assert set(found) == ({"table3", "table4"} if column in ("50", "+consistency") else {study})
    texture_alone = arm_config(BASE, "baseline").replace(model={"texture": True})
    assert columns_of(texture_alone.to_dict()) == {}
    assert columns_of(arm_config(BASE, "baseline").replace(pseudo={"ratio": 0.25}).to_dict()) == {}
    assert columns_of(study_configs("table3", BASE)["5"].replace(pseudo={"ratio": 0.06}).to_dict()) == {}


COLUMNS = [(s, c) for s in grid.STUDIES for c in study_configs(s, BASE)]


@settings(max_examples=40)
@given(
    st.sampled_from(COLUMNS),
    st.integers(0, 2**31 - 1),
    st.sampled_from(["auto", "cpu", "cuda:1"]),
    st.integers(32, 512),
    st.integers(1, 10**6),
)
def test_a_setting_is_what_all_columns_seeds_and_devices_share(
    column: tuple[str, str], seed: int, device: str, size: int, steps: int
) -> None:
    own = BASE.replace(data={"size": size}, train={"steps": steps})
    config = study_configs(column[0], own)[column[1]].replace(train={"seed": seed, "device": device})
    assert setting_of(config.to_dict()) == setting_of(arm_config(own, "baseline").to_dict())
    other = config.replace(data={"size": size + 1})
    assert setting_of(other.to_dict()) != setting_of(config.to_dict())


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
    assert grid.find_data(None, None) == [miniparts_path() / name for name in CATEGORIES]
    assert grid.find_data(None, ["weave"]) == [miniparts_path() / "weave"]


def test_one_category_and_a_folder_of_them(parts: Path, tmp_path: Path) -> None:
    for name in ("nuts", "bolts", "notes"):
        (tmp_path / name / ("train" if name != "notes" else "")).mkdir(parents=True, exist_ok=True)
    assert grid.find_data(parts, None) == [parts]
    assert grid.find_data(tmp_path, None) == [tmp_path / "bolts", tmp_path / "nuts"]
    assert grid.find_data(tmp_path, ["nuts", "bolts", "nuts"]) == [tmp_path / "nuts", tmp_path / "bolts"]
    with pytest.raises(ConfigError, match=r"unknown category 'notes' in .*; there are bolts, nuts"):
        grid.find_data(tmp_path, ["nuts", "notes"])
    with pytest.raises(ConfigError, match="--categories names none; there are bolts, nuts"):
        grid.find_data(tmp_path, [])
    with pytest.raises(ConfigError, match="is one category"):
        grid.find_data(parts, ["good"])
    with pytest.raises(DataError, match="holds no category"):
        grid.find_data(tmp_path / "nuts" / "train", None)
    with pytest.raises(DataError, match="does not exist or is not a folder"):
        grid.find_data(tmp_path / "gone", None)


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
