from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mlffn_lite.config import PRESETS, Config, LossConfig, ModelConfig
from mlffn_lite.errors import ConfigError


@pytest.mark.parametrize("name", PRESETS)
def test_toml_round_trip(name: str) -> None:
    config = Config.preset(name)
    assert Config.from_toml(config.to_toml()) == config


@given(st.text(alphabet=st.characters(codec="utf-8"), min_size=1))
def test_any_weights_path_survives_toml(path: str) -> None:
    config = Config().replace(model={"weights": path})
    assert Config.from_toml(config.to_toml()) == config


@given(st.floats(0, 1), st.integers(0, 2**31 - 1))
def test_numbers_survive_toml_exactly(ratio: float, seed: int) -> None:
    config = Config().replace(pseudo={"ratio": ratio}, train={"seed": seed})
    assert Config.from_toml(config.to_toml()) == config


def test_paper_preset_is_the_paper() -> None:
    config = Config.preset("paper")
    assert (config.data.size, config.model.backbone, config.model.weights) == (256, "resnet50", "default")
    assert (config.model.width, config.model.stride, config.texture.tem_levels) == (256, 4, 128)
    assert (config.loss.feature, config.loss.score, config.loss.consistency) == (1, 1, 1)
    assert (config.loss.gamma, config.loss.lam, config.pseudo.ratio) == (2.5, 5, 0.5)
    assert (config.method, config.pseudo.kinds) == ("mlffn", {"confetti": 1, "cutpaste": 1})
    train = config.train
    assert (train.optimizer, train.lr, train.weight_decay, train.batch) == ("sgd", 0.001, 3e-5, 32)
    assert (train.steps, train.epochs, train.repeats, train.backbone) == (0, 200, 10, "train")


def test_override_parses_values_as_toml() -> None:
    config = Config().override(
        [
            "train.steps=400",
            "train.lr = 1e-2",
            "train.optimizer=adamw",
            'model.weights="a=b.pth"',
            "texture.scales=[1, 3]",
            "method=density",
        ]
    )
    assert (config.train.steps, config.train.lr, config.train.optimizer) == (400, 0.01, "adamw")
    assert (config.model.weights, config.texture.scales, config.method) == ("a=b.pth", (1, 3), "density")


def test_integers_become_floats_where_floats_belong() -> None:
    assert Config().override(["train.lr=1"]).train.lr == 1.0


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.stepz=1", "unknown key train.stepz"),
        ("trian.steps=1", "unknown section 'trian'"),
        ("steps=1", "section.key=value"),
        ("train.steps", "section.key=value"),
        ("train.steps=many", "train.steps must be of type int"),
        ("train.steps=true", "train.steps must be of type int"),
        ("model.texture=1", "model.texture must be of type bool"),
        ("train.optimizer=adam", "choose one of sgd, adamw"),
        ("texture.scales=[]", "texture.scales is empty"),
        ("texture.scales=3", "list of integers"),
        ("texture.scales=[0]", "texture.scales.0 = 0 is out of range; it must be greater than or equal to 1"),
        ("density.strides=[16, 8]", "some of 4, 8 and 16, ascending"),
        ("density.strides=[8, 8]", "some of 4, 8 and 16, ascending"),
        ("density.strides=[]", "density.strides is empty"),
        ("density.strides=[5]", "density.strides.0 = 5 is unknown"),
        ("model.stride=5", "choose one of 4, 8, 16"),
        ("pseudo.ratio=1.5", "between 0 and 1"),
        ("pseudo.ratio=nan", "not a finite number"),
        ("pseudo.kinds={bar=1}", "pseudo.kinds names 'bar'; choose from confetti, cutpaste, scar, blemish"),
        ("pseudo.kinds={confetti=-1}", "pseudo.kinds.confetti = -1 is out of range"),
        ("pseudo.kinds=3", "pseudo.kinds must be a table of keys"),
        ("ensemble.members={density=0}", "ensemble.members gives no method a weight"),
        ("ensemble.members={ensemble=1}", "names ensemble itself"),
        ("method=mlfn", "method = 'mlfn' is unknown; choose from mlffn, density"),
        ("method=3", "method must be a word"),
        ("loss.gamma=nan", "loss.gamma"),
        ("train.batch=1", "between 2 and"),
        ("data.crop=[0, 0, 9, 1" + 30 * "0" + "]", "left,top,width,height"),
        ("train.optimizer=" + 5000 * "[", "is unknown"),
    ],
)
def test_bad_values_are_named(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        Config().override([assignment])


def test_combinations_that_learn_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="no kind a weight"):
        Config().replace(pseudo={"kinds": {"confetti": 0, "cutpaste": 0}})
    with pytest.raises(ConfigError, match="all 0"):
        Config().replace(model={"score": "distance"}, loss={"feature": 0, "score": 0, "consistency": 0})


def test_score_constraint_needs_the_learned_score() -> None:
    with pytest.raises(ConfigError, match=r"model\.score"):
        Config().replace(model={"score": "distance"})
    with pytest.raises(ConfigError, match=r"loss\.score above 0"):
        Config().replace(loss={"score": 0})


def test_unknown_preset_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="paper, parts, small, thorough, tiny"):
        Config.preset("huge")


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml"):
        Config.load(tmp_path / "none.toml")
    bad = tmp_path / "bad.toml"
    bad.write_text("train = ")
    with pytest.raises(ConfigError, match=r"bad\.toml is not valid TOML"):
        Config.load(bad)
    bad.write_text("train = 3\n")
    with pytest.raises(ConfigError, match="must be a table"):
        Config.load(bad)
    bad.write_text("a = " + 50_000 * "[")
    with pytest.raises(ConfigError, match=r"bad\.toml is not valid TOML"):
        Config.load(bad)
    bad.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"bad\.toml"):
        Config.load(bad)


def test_matching_follows_what_determines_the_weights() -> None:
    base = Config()
    assert base.matches(base.to_dict())
    assert base.matches(base.replace(train={"device": "cpu", "checkpoint_every": 7}).to_dict())
    assert not base.matches(base.replace(train={"seed": 1}).to_dict())
    assert not base.matches(base.replace(texture={"scales": [1, 2]}).to_dict())
    assert base.matches({"train": {"seed": 0}})  # a run from before a key existed
    assert not base.matches({"train": {"unknown": 0}})
    assert not base.matches({"train": 3})


def test_presets_for_own_parts_differ_in_the_method_alone() -> None:
    """So one configuration serves every row of a comparison."""
    assert Config.preset("small").replace(method="ensemble") == Config.preset("parts")
    assert Config.preset("small").pseudo == Config.preset("paper").pseudo


def test_two_keys_that_only_go_together_may_come_in_any_order() -> None:
    both = ["model.score=distance", "loss.score=0", "loss.consistency=0"]
    assert Config().override(both) == Config().override(both[::-1])


def test_the_order_of_weights_does_not_count() -> None:
    a, b = ({"scar": 1.0, "confetti": 2.0}, {"confetti": 2.0, "scar": 1.0})
    assert Config().replace(pseudo={"kinds": a}).to_toml() == Config().replace(pseudo={"kinds": b}).to_toml()


def test_the_schema_tells_editors_bounds_choices_and_meanings() -> None:
    schema = Config.model_json_schema()["$defs"]["TrainConfig"]["properties"]
    assert (schema["batch"]["minimum"], schema["batch"]["maximum"]) == (2, 65536)
    assert schema["optimizer"]["enum"] == ["sgd", "adamw"]
    assert "over all devices" in schema["batch"]["description"]
    undescribed = [
        k
        for s in Config.model_json_schema()["$defs"].values()
        for k, v in s["properties"].items()
        if "description" not in v
    ]
    assert undescribed == []


def test_values_never_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Config().train.steps = 3


def test_a_section_by_itself_words_its_errors_alike() -> None:
    with pytest.raises(ConfigError, match=r"^model\.width = 4 is out of range; it must lie between 8 and 4096$"):
        ModelConfig(width=4)
    with pytest.raises(ConfigError, match=r"^unknown key loss\.gama; choose one of balanced"):
        LossConfig(gama=4.0)  # type: ignore[call-arg]
