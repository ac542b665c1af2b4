"""Explorers without a browser: controls are set by code; label, picture, regions and verdict are read."""

from __future__ import annotations

import io
import itertools
import math
from dataclasses import fields
from typing import Any

import ipywidgets  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch
from explored import NAMES, SCALE, SIDE, Brightness, detector, prediction, split
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from course.explorers import PseudoExplorer, PseudoPainter, paint
from mlffn_lite import registry
from mlffn_lite.canvas import VISIBLE_CHANGE
from mlffn_lite.config import Config
from mlffn_lite.detector import Calibration, Prediction
from mlffn_lite.figures import overlay
from mlffn_lite.widgets import (
    Explorer,
    HeatmapExplorer,
    ImagePicker,
    RunComparison,
)
from mlffn_lite.widgets.controls import move

KINDS = {n: registry.find("kinds", n) for n in registry.names("kinds") if n != "defects"}  # it draws nothing


@pytest.fixture
def heat() -> HeatmapExplorer:
    parts = split()
    return HeatmapExplorer(prediction(parts), parts, calibration=SCALE)


def pixels(explorer: Explorer, title: str | None = None) -> np.ndarray:
    """Decode the picture; with a title, that panel of it."""
    image = Image.open(io.BytesIO(explorer.png))
    assert image.format == "PNG"
    assert image.mode == "RGB"
    assert image.text["Description"] == explorer.alt  # type: ignore[attr-defined]
    return np.asarray(image.crop(explorer.boxes[title]) if title else image)


def every(widget: ipywidgets.Widget) -> list[ipywidgets.Widget]:
    """List a widget and all below it."""
    return [widget, *itertools.chain(*(every(child) for child in getattr(widget, "children", ())))]


def explorers() -> dict[str, Explorer]:
    parts = split()
    found, fitted = prediction(parts), detector(parts)
    return {
        "heat": HeatmapExplorer({"a": found, "b": fitted}, {"a": parts, "b": parts}, calibration={"a": SCALE}),
        "runs": RunComparison({"one": found, "two": fitted}, parts, calibrations={"one": SCALE}),
        "painter": PseudoPainter(fitted, parts),
        "pseudo": PseudoExplorer(parts),
    }


class TestPicker:
    def test_filters(self) -> None:
        picker = ImagePicker({"": split()})
        assert picker.defect.options == ("all", "good", "hole", "stain")
        picker.defect.value = "hole"
        assert [label for label, _ in picker.image.options] == ["hole/000", "hole/001"]
        assert (picker.name, picker.chosen) == ("hole/000", ("", 2))

    def test_goes_round(self) -> None:
        picker = ImagePicker({"": split()})
        picker.defect.value = "hole"
        seen = []
        for button in (picker.next, picker.next, picker.previous, picker.previous):
            button.click()
            seen.append(picker.name)
        assert seen == ["hole/001", "hole/000", "hole/001", "hole/000"]

    def test_categories(self) -> None:
        picker = ImagePicker({"a": split(), "b": split(["good/007", "dent/001"])})
        picker.defect.value = "hole"
        picker.category.value = "b"
        assert picker.defect.options == ("all", "good", "dent")
        assert (picker.name, picker.chosen) == ("good/007", ("b", 0))
        picker.select("stain/000", "a")
        assert picker.chosen == ("a", 4)
        picker.select("good/001")
        assert picker.chosen == ("a", 1)

    def test_tells_of_each_choice_once(self) -> None:
        picker = ImagePicker({"a": split(), "b": split(["good/007", "dent/001"])})
        seen: list[Any] = []
        picker.observe(lambda change: seen.append(change["new"]), "chosen")
        picker.next.click()
        picker.category.value = "b"
        picker.defect.value = "dent"
        assert seen == [("a", 1), ("b", 0), ("b", 1)]

    def test_only_good(self) -> None:
        picker = ImagePicker({"": split(["hole/000", "good/003", "good/004"])}, only_good=True)
        assert picker.image.options == (("good/003", 1), ("good/004", 2))
        assert picker.chosen == ("", 1)
        with pytest.raises(ValueError, match="no good image"):
            ImagePicker({"": split(["hole/000"])}, only_good=True)

    def test_unknown_names(self) -> None:
        picker = ImagePicker({"a": split()})
        with pytest.raises(ValueError, match="no image 'hole/999'; the first is 'good/000'"):
            picker.select("hole/999")
        with pytest.raises(ValueError, match="no category 'x'; choose from a"):
            picker.select("hole/000", "x")


def test_a_slider_moves_in_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several, the first would make the browser push the old value into the new range, and send it back."""
    control, sent = ipywidgets.FloatSlider(value=8.0, min=0.0, max=40.0, step=0.1), list[set[str]]()
    monkeypatch.setattr(control, "send_state", lambda key: sent.append({key} if isinstance(key, str) else set(key)))
    move(control, 20.0, 900.0, 1.0, 129.0)
    assert sent == [{"min", "max", "step", "value"}]
    assert (control.min, control.value, control.max) == (20.0, 129.0, 900.0)


class TestHeatmapExplorer:
    def test_label_and_regions(self, heat: HeatmapExplorer) -> None:
        assert heat.label.value == "good/000: image score 0.25 ≤ threshold 1.00: good. Truth: good; right."
        assert heat.regions == []
        assert "<td" not in heat.table.value
        heat.picker.select("hole/001")
        assert heat.label.value == "hole/001: image score 1.75 > threshold 1.00: anomalous. Truth: anomalous; right."
        assert [r[:4] for r in heat.regions] == [(36, 1.75, 6, 12)]
        for cell in ("1 region above the threshold", ">36<", ">1.75<", ">(6, 12)<", ">100%<"):
            assert cell in heat.table.value

    @pytest.mark.parametrize(
        ("name", "threshold", "verdict", "word"),
        [
            ("hole/000", 1.74, True, "right"),
            ("hole/000", 1.75, False, "a miss"),  # the score itself does not exceed the threshold
            ("stain/000", 1.0, False, "a miss"),
            ("good/000", 0.25, False, "right"),
            ("good/000", 0.24, True, "a false alarm"),
        ],
    )
    def test_verdict(self, heat: HeatmapExplorer, name: str, threshold: float, verdict: bool, word: str) -> None:
        heat.picker.select(name)
        heat.threshold.value = threshold
        assert heat.anomalous is verdict
        assert bool(heat.regions) is verdict
        assert heat.label.value.endswith(f"; {word}.")

    @pytest.mark.parametrize(
        ("masks", "threshold", "word"),
        [
            (True, 1.0, "right, but not where the defect is"),
            (True, 0.2, "right"),  # all of the image is above the threshold, the defect too
            (False, 1.0, "right"),  # nobody knows where the defect is
        ],
    )
    def test_a_region_beside_the_defect_is_called_that(self, masks: bool, threshold: float, word: str) -> None:
        parts = split(masks=masks)
        found = prediction(split())
        explorer = HeatmapExplorer(Prediction(found.maps.flip(1), found.scores), parts, calibration=SCALE)
        explorer.picker.select("hole/000")
        explorer.threshold.value = threshold
        assert explorer.label.value.endswith(f"Truth: anomalous; {word}.")

    @given(st.floats(-0.5, 2.5), st.sampled_from(NAMES))
    @settings(max_examples=25)
    def test_verdict_and_regions_agree(self, threshold: float, name: str) -> None:
        parts = split()
        found = prediction(parts)
        explorer = HeatmapExplorer(found, parts, calibration=Calibration(-1.0, 3.0, threshold))
        explorer.picker.select(name)
        score = float(found.scores[NAMES.index(name)])
        assert explorer.anomalous == bool(explorer.regions) == (score > threshold)
        assert ("anomalous. Truth" in explorer.label.value) == explorer.anomalous

    def test_opacity(self, heat: HeatmapExplorer) -> None:
        heat.picker.select("hole/000")
        heat.threshold.value = heat.threshold.max  # nothing is outlined
        photo, over = "image, true mask", "overlay, above the threshold"
        heat.truth.value = False
        heat.opacity.value = 0.0
        assert (pixels(heat, photo) == pixels(heat, over)).all()
        heat.opacity.value = 1.0
        assert (pixels(heat, photo) != pixels(heat, over)).any()
        for value in (-1, 2):
            heat.opacity.value = value
            assert heat.opacity.value in (0, 1)  # clipped

    def test_pixels_are_those_of_the_figures(self) -> None:
        parts = split(shape=(256, 256))  # as large as a panel: nothing is resized
        found = prediction(parts)
        explorer = HeatmapExplorer(found, parts, calibration=SCALE)
        explorer.picker.select("hole/000")
        explorer.truth.value = False
        explorer.threshold.value = explorer.threshold.max
        image = parts[2].image.numpy()
        assert (pixels(explorer, "image, true mask") == image.transpose(1, 2, 0)).all()
        expected = overlay(image, found.maps[2].numpy(), 0.0, 2.0, 0.6)
        assert (pixels(explorer, "overlay, above the threshold") == expected).all()

    def test_outlines(self) -> None:
        parts = split(shape=(256, 256))
        explorer = HeatmapExplorer(prediction(parts), parts, calibration=SCALE)
        explorer.picker.select("hole/000")
        border = parts[2].mask.numpy() & ~ndimage.binary_erosion(parts[2].mask.numpy())
        for title, colour in (("image, true mask", (0, 229, 255)), ("overlay, above the threshold", (255, 255, 255))):
            found = (pixels(explorer, title) == colour).all(2)
            if title.startswith("image"):
                assert (found == border).all()
            assert found[border].mean() > 0.8  # the number may cover some

    def test_colours(self, heat: HeatmapExplorer) -> None:
        heat.picker.select("hole/000")
        before = pixels(heat, "score map")
        assert before[0, 0].sum() < before[100, 56].sum()
        heat.colours.value = (1.7, 1.9)
        after = pixels(heat, "score map")
        assert (after[0, 0] == pixels(heat, "score map")[-1, -1]).all()
        assert after[90, 40].sum() < before[90, 40].sum()  # 1.5 is at the cold end now
        heat.colours.value = (1.0, 1.0)  # the ends may meet
        assert pixels(heat, "score map").shape == before.shape

    def test_reset(self, heat: HeatmapExplorer) -> None:
        heat.threshold.value, heat.colours.value = 1.5, (0.5, 0.75)
        png = heat.png
        heat.reset.click()
        assert heat.threshold.value == 1.0
        assert heat.colours.value == (0.0, 2.0)
        assert heat.png != png

    def test_categories_have_scales_of_their_own(self) -> None:
        parts, other = split(), split(["good/000", "dent/003"])
        large = Prediction(*(1000 * t for t in prediction(other)))
        explorer = HeatmapExplorer(
            {"a": prediction(parts), "b": large},
            {"a": parts, "b": other},
            calibration={"a": SCALE, "b": Calibration(10.0, 2000.0, 600.0)},
        )
        explorer.threshold.value = 1.5
        explorer.picker.select("dent/003", "b")
        assert explorer.label.value.startswith("b dent/003: image score 250 ≤ threshold 600: good.")
        assert explorer.colours.value == (10.0, 2000.0)
        explorer.picker.category.value = "a"
        assert explorer.threshold.value == 1.0  # calibrated again
        assert explorer.label.value.startswith("a good/000: image score 0.25")

    def test_calibration_from_good_images(self) -> None:
        parts = split()
        found = prediction(parts)
        explorer = HeatmapExplorer(found, parts)
        assert explorer.threshold.value == pytest.approx(0.25)
        fitted = detector(parts)
        assert fitted.calibration is not None
        assert HeatmapExplorer(fitted, parts).threshold.value == fitted.calibration.threshold

    def test_unknown_masks(self) -> None:
        parts = split(masks=False)
        explorer = HeatmapExplorer(prediction(split()), parts, calibration=SCALE)
        explorer.picker.select("hole/000")
        assert ">unknown<" in explorer.table.value

    def test_many_regions_are_cut_off(self) -> None:
        parts = split(["good/000"])
        maps = torch.zeros(1, SIDE, SIDE)
        maps[:, ::4, ::4] = torch.arange(64.0).view(8, 8)
        explorer = HeatmapExplorer(Prediction(maps, maps.flatten(1).amax(1)), parts, calibration=SCALE)
        explorer.threshold.value = 1.0
        assert len(explorer.regions) == 62
        assert explorer.table.value.count("<tr>") == 1 + 8
        assert "62 regions above the threshold, the 8 with the highest peaks" in explorer.table.value

    def test_no_square(self) -> None:
        parts = split(shape=(24, 48))
        explorer = HeatmapExplorer(prediction(parts), parts, calibration=SCALE)
        assert pixels(explorer, "score map").shape == (128, 256, 3)

    def test_a_constant_map(self) -> None:
        parts = split(["good/000"])
        found = Prediction(torch.full((1, SIDE, SIDE), 3.0), torch.tensor([3.0]))
        explorer = HeatmapExplorer(found, parts)
        assert explorer.anomalous is False
        assert explorer.regions == []

    def test_bad_input(self) -> None:
        parts = split()
        found = prediction(parts)
        broken = Prediction(found.maps.clone(), found.scores)
        broken.maps[1, 2, 3] = math.nan
        unfitted = Brightness(Config.preset("tiny", train={"device": "cpu"}))
        cases: dict[str, tuple[Any, Any]] = {
            "categories": ({"a": found}, {"b": parts}),
            "the split needs maps": (found, split(NAMES[:3])),
            "and a score each": (Prediction(found.maps, found.scores[:2]), parts),
            "not finite": (broken, parts),
            "not fitted": (unfitted, parts),
            "no good image": (Prediction(found.maps[2:], found.scores[2:]), split(NAMES[2:])),
            "the split holds no image": (Prediction(found.maps[:0], found.scores[:0]), parts.subset([])),
        }
        for message, (source, shown) in cases.items():
            with pytest.raises(ValueError, match=message) as error:
                HeatmapExplorer(source, shown)
            assert "\n" not in str(error.value)


class TestRunComparison:
    def runs(self) -> RunComparison:
        parts = split()
        found = prediction(parts)
        twice = Prediction(*(4 * t - 1 for t in found))
        scales = {"one": SCALE, "two": Calibration(-1.0, 7.0, 3.0)}
        return RunComparison({"one": found, "two": twice}, parts, calibrations=scales)

    def test_scores_and_verdicts(self) -> None:
        runs = self.runs()
        runs.picker.select("hole/000")
        assert runs.scores == {"one": 1.75, "two": 6.0}
        assert runs.thresholds == {"one": 1.0, "two": 3.0}
        assert runs.verdicts == {"one": True, "two": True}
        text = "hole/000, in truth anomalous. one: 1.75, anomalous. two: 6.00, anomalous."
        assert runs.label.value == text
        assert [len(regions) for regions in runs.regions.values()] == [1, 1]
        assert runs.table.value.count(">100%<") == 2

    def test_strictness(self) -> None:
        runs = self.runs()
        runs.picker.select("hole/000")
        runs.strictness.value = 2.0
        assert runs.thresholds == {"one": 2.0, "two": 7.0}
        assert runs.verdicts == {"one": False, "two": False}
        runs.strictness.value = 0.0
        assert runs.thresholds == {"one": 0.0, "two": -1.0}
        assert [r[:4] for r in runs.regions["one"]] == [(SIDE * SIDE, 1.75, 6, 12)]

    def test_scales(self) -> None:
        runs = self.runs()
        runs.picker.select("hole/000")
        own = pixels(runs, "one")
        assert runs.scales == {"one": (0.0, 2.0), "two": (-1.0, 7.0)}
        assert (own == pixels(runs, "two")).mean() > 0.99  # the same map in other units
        runs.scale.value = "common"
        assert runs.scales == {"one": (-1.0, 7.0), "two": (-1.0, 7.0)}
        assert (own != pixels(runs, "one")).any()

    @pytest.mark.parametrize("count", [0, 1, 3])
    def test_two_runs(self, count: int) -> None:
        parts = split()
        with pytest.raises(ValueError, match="give two runs"):
            RunComparison(dict.fromkeys("abc"[:count], prediction(parts)), parts)


class TestPaint:
    IMAGE = split()[0].image

    @pytest.mark.parametrize("kind", KINDS)
    @given(x=st.floats(0, 1), y=st.floats(0, 1), size=st.floats(0.05, 1), seed=st.integers(0, 9))
    @settings(max_examples=20)
    def test_mask_marks_what_changed(self, kind: str, x: float, y: float, size: float, seed: int) -> None:
        painted, mask = paint(self.IMAGE, kind, x=x, y=y, size=size, seed=seed)
        change = (painted - self.IMAGE / 255).abs().amax(0)
        assert ((change > VISIBLE_CHANGE) == mask).all()
        assert (change[~mask] == 0).all()
        assert painted.min() >= 0
        assert painted.max() <= 1
        again, _ = paint(self.IMAGE, kind, x=x, y=y, size=size, seed=seed)
        assert torch.equal(painted, again)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(("x", "y"), [(0.5, 0.5), (0.3, 0.7), (0.75, 0.25)])
    def test_place(self, kind: str, x: float, y: float) -> None:
        image = torch.rand(3, 96, 64, generator=torch.Generator().manual_seed(0))
        centres = []
        for seed in range(12):
            _, mask = paint(image, kind, x=x, y=y, size=0.3, seed=seed)
            rows, columns = mask.nonzero().float().mean(0).tolist()
            centres.append((columns / 63, rows / 95))
        assert np.mean(centres, axis=0) == pytest.approx((x, y), abs=0.04)

    @pytest.mark.parametrize("kind", ["cutpaste", "scar"])
    @pytest.mark.parametrize(("x", "y"), [(0, 0), (1, 1), (0, 1)])
    def test_pasted_at_the_border(self, kind: str, x: float, y: float) -> None:
        rows, columns = paint(self.IMAGE, kind, x=x, y=y, size=0.3)[1].nonzero().T
        assert (columns.min() < 4) if x == 0 else (columns.max() >= SIDE - 4)
        assert (rows.min() < 4) if y == 0 else (rows.max() >= SIDE - 4)

    @pytest.mark.parametrize("kind", KINDS)
    def test_size(self, kind: str) -> None:
        image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
        areas = [paint(image, kind, x=0.5, y=0.5, size=s)[1].sum() for s in (0.1, 0.2, 0.4)]
        assert areas[0] < areas[1] < areas[2]

    @pytest.mark.parametrize("kind", KINDS)
    def test_strength(self, kind: str) -> None:
        where: dict[str, Any] = {"x": 0.4, "y": 0.6, "size": 0.3}
        good = self.IMAGE / 255
        nothing, mask = paint(self.IMAGE, kind, **where, strength=0)
        assert torch.equal(nothing, good)
        assert not mask.any()
        changes = [(paint(self.IMAGE, kind, **where, strength=s)[0] - good).abs().sum() for s in (0.2, 0.5, 1)]
        assert changes[0] < changes[1] < changes[2]

    def test_area_of_cutpaste(self) -> None:
        image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
        mask = paint(image, "cutpaste", x=0.5, y=0.5, size=0.4)[1]
        assert float(mask.float().mean()) == pytest.approx(0.16, abs=0.03)

    def test_bad_input(self) -> None:
        place: dict[str, Any] = {"x": 0.5, "y": 0.5, "size": 0.2}
        with pytest.raises(ValueError, match="unknown kind 'rust'; choose from confetti"):
            paint(self.IMAGE, "rust", **place)
        for bad in ({"x": -0.1}, {"y": 1.1}, {"size": 0}, {"size": 1.5}, {"strength": 2}, {"x": math.nan}):
            with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
                paint(self.IMAGE, "confetti", **(place | bad))
        with pytest.raises(ValueError, match="images must"):
            paint(self.IMAGE.float(), "confetti", **place)


class TestPainter:
    def painter(self) -> PseudoPainter:
        parts = split()
        return PseudoPainter(detector(parts), parts)

    def test_score_answers(self) -> None:
        painter = self.painter()
        assert painter.picker.name == "good/000"
        assert painter.anomalous is True
        assert painter.mask.any()
        before, after = float(painter.before.scores[0]), float(painter.after.scores[0])
        assert before < after
        assert "inside" in painter.table.value
        painter.strength.value = 0.0
        assert torch.equal(painter.after.maps, painter.before.maps)
        assert painter.anomalous == (before > painter._scale.threshold)
        assert painter.label.value.startswith("confetti on good/000, 0.0% of the pixels.")
        assert "–" in painter.table.value

    def test_moves(self) -> None:
        painter = self.painter()
        painter.x.value, painter.y.value = 0.2, 0.8
        rows, columns = painter.mask.nonzero().float().mean(0).tolist()
        assert (columns, rows) == pytest.approx((0.2 * SIDE, 0.8 * SIDE), abs=2)
        photo, good = pixels(painter, "painted, mask"), pixels(painter, "good image")
        changed = (photo != good).any(2)
        assert changed[104:, :104].any()
        assert not changed[:104, 104:].any()

    @pytest.mark.parametrize("kind", KINDS)
    def test_kinds(self, kind: str) -> None:
        painter = self.painter()
        painter.kind.value, png = kind, painter.png
        painter.seed.value = 5
        assert painter.png != png
        assert painter.label.value.startswith(kind)

    def test_next_image(self) -> None:
        painter = self.painter()
        before = painter.before.maps
        painter.picker.next.click()
        assert painter.label.value.startswith("confetti on good/001")
        assert not torch.equal(painter.before.maps, before)

    def test_bad_input(self) -> None:
        with pytest.raises(ValueError, match="not fitted"):
            PseudoPainter(Brightness(Config.preset("tiny", train={"device": "cpu"})), split())
        with pytest.raises(ValueError, match="no good image"):
            PseudoPainter(detector(split()), split(NAMES[2:]))


class TestPseudoExplorer:
    @pytest.mark.parametrize("kind", KINDS)
    def test_starts_with_the_library_s_parameters(self, kind: str) -> None:
        explorer = PseudoExplorer(split())
        explorer.kind.value = kind
        assert explorer.generator == KINDS[kind]()
        names = {f.name for f in fields(KINDS[kind])}
        assert explorer.parameters[kind].keys() <= names
        images, masks = KINDS[kind]()(split().images(), generator=torch.Generator().manual_seed(0))
        assert torch.equal(explorer.images, images)
        assert torch.equal(explorer.masks, masks)
        assert explorer._sliders.children == tuple(explorer.parameters[kind].values())

    @pytest.mark.parametrize("kind", KINDS)
    def test_ends_of_every_slider(self, kind: str) -> None:
        explorer = PseudoExplorer(split(), count=2)
        explorer.kind.value = kind
        for name, slider in explorer.parameters[kind].items():
            start = slider.value
            for end in (slider.min, slider.max):
                slider.value = (end, end) if isinstance(start, tuple) else end
                assert getattr(explorer.generator, name) == slider.value
                assert pixels(explorer).shape[2] == 3
            slider.value = start

    def test_parameters_act(self) -> None:
        explorer = PseudoExplorer(split())
        png = explorer.png
        explorer.parameters["confetti"]["side"].value = (0.375, 0.375)
        assert explorer.png != png
        assert "side=(0.375, 0.375)" in explorer.table.value
        assert explorer.masks.float().mean() > 0.1
        explorer.parameters["scar"]["jitter"].value = 0.5  # of another kind: nothing to see
        assert explorer.label.value.startswith("confetti")

    def test_seed(self) -> None:
        explorer = PseudoExplorer(split())
        images = explorer.images
        explorer.seed.value = 1
        assert not torch.equal(images, explorer.images)
        explorer.seed.value = 0
        assert torch.equal(images, explorer.images)

    def test_masks_are_drawn(self) -> None:
        explorer = PseudoExplorer(split(), count=3)
        assert len(explorer.boxes) == 3
        for box, mask in zip(explorer.boxes, explorer.masks, strict=True):
            lower = pixels(explorer, box)[140:]
            assert set(np.unique(lower)) <= {0, 255}
            assert (lower == 255).all(2).mean() == pytest.approx(float(mask.float().mean()), abs=0.02)

    def test_bad_input(self) -> None:
        with pytest.raises(ValueError, match="no image"):
            PseudoExplorer(torch.zeros(0, 3, 8, 8))
        with pytest.raises(ValueError, match="shape"):
            PseudoExplorer(torch.zeros(2, 8, 8))
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            PseudoExplorer(torch.full((1, 3, 8, 8), 2.0))


class TestEveryExplorer:
    @pytest.mark.parametrize("name", ["heat", "runs", "painter", "pseudo"])
    def test_can_be_used_without_sight_or_mouse(self, name: str) -> None:
        explorer = explorers()[name]
        assert len(explorer.alt) > 40
        pixels(explorer)  # compares the PNG's text
        outcome = ipywidgets.HTML, ipywidgets.Label, ipywidgets.Image
        controls = [c for c in every(explorer) if hasattr(c, "description") and not isinstance(c, outcome)]
        assert len(controls) >= 7
        for control in controls:
            assert control.description
            assert len(control.tooltip) > 10
            assert not control.disabled
        assert not any(isinstance(c, ipywidgets.Output) for c in every(explorer))

    @pytest.mark.parametrize("name", ["heat", "runs", "painter", "pseudo"])
    def test_sliders_start_on_their_steps(self, name: str) -> None:
        """Else the browser moves them when it shows them, and with them colours, verdict or parameters."""
        explorer = explorers()[name]
        sliders = [c for c in every(explorer) if hasattr(c, "readout_format")]
        if isinstance(explorer, PseudoExplorer):
            sliders = [slider for kind in explorer.parameters.values() for slider in kind.values()]
        assert len(sliders) > 1
        for slider in sliders:
            for value in np.atleast_1d(slider.value):
                steps = (value - slider.min) / slider.step
                assert steps == pytest.approx(round(steps), abs=1e-6)
                assert slider.min <= value <= slider.max

    def test_the_browser_can_set_the_tooltip_of_a_picture(self, heat: HeatmapExplorer) -> None:
        state = heat.surfaces[-1].picture.get_state()
        assert state["description"] == ""
        assert state["tooltip"] == heat.alt

    @pytest.mark.parametrize("name", ["heat", "runs", "painter", "pseudo"])
    def test_same_again(self, name: str) -> None:
        first, second = explorers()[name], explorers()[name]
        assert first.png == second.png
        assert first.table.value == second.table.value
        assert repr(first).startswith(f"{type(first).__name__}: ")

    def test_draws_once_for_several_settings(self, monkeypatch: pytest.MonkeyPatch, heat: HeatmapExplorer) -> None:
        drawn: list[str] = []
        monkeypatch.setattr(heat, "redraw", lambda: drawn.append("now"))
        with heat.together():
            heat.opacity.value, heat.threshold.value = 0.3, 0.9
            heat.picker.next.click()
            assert drawn == []
        assert drawn == ["now"]
        heat.opacity.value = 0.5
        assert len(drawn) == 2

    def test_base_has_nothing_to_show(self) -> None:
        with pytest.raises(NotImplementedError):
            Explorer().redraw()
