"""The pictures of a whole set, and the list that a picker makes of it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import ipywidgets  # type: ignore[import-untyped]
import numpy as np
import pytest
from explored import NAMES, SCALE, prediction, split
from PIL import Image, ImageColor

from mlffn_lite.detector import Calibration, Prediction
from mlffn_lite.errors import MlffnError
from mlffn_lite.figures import COLOURS
from mlffn_lite.widgets import HeatmapExplorer, ImagePicker, RunComparison, Verdicts
from mlffn_lite.widgets.overview import Histogram, Thumbnail, contact_sheet


@pytest.fixture
def heat() -> HeatmapExplorer:
    parts = split()
    return HeatmapExplorer(prediction(parts), parts, calibration=SCALE)


def many() -> HeatmapExplorer:
    names = [f"hole/{i:03}" for i in range(20)] + ["good/000"]
    parts = split(names)
    return HeatmapExplorer(prediction(parts), parts, calibration=SCALE)


def decoded(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def marked(rgb: np.ndarray, colour: str) -> np.ndarray:
    return (rgb == ImageColor.getrgb(COLOURS[colour])).all(2)


class TestPanels:
    def test_only_what_changes_is_sent(self, heat: HeatmapExplorer) -> None:
        heat.picker.select("hole/000")

        def changed(control: Any, value: Any) -> list[bool]:
            before = [s.picture.value for s in heat.surfaces]
            control.value = value
            return [s.picture.value is not b for s, b in zip(heat.surfaces, before, strict=True)]

        assert changed(heat.opacity, 0.3) == [False, False, True]
        assert changed(heat.truth, False) == [True, False, False]
        assert changed(heat.threshold, 0.5) == [False, False, True]
        assert changed(heat.colours, (0.2, 2.0)) == [False, True, True]
        assert changed(heat.colours, (0.2, 2.0)) == [False, False, False]

    def test_the_panels_are_those_of_the_whole(self, heat: HeatmapExplorer) -> None:
        whole = decoded(heat.png)
        for surface, (left, top, right, bottom) in zip(heat.surfaces, heat.boxes.values(), strict=True):
            panel = decoded(surface.picture.value)
            assert (panel[top:bottom, : right - left] == whole[top:bottom, left:right]).all()


class TestHistogram:
    def test_good_above_anomalous_below(self) -> None:
        parts = split()
        rgb = Histogram(Verdicts(parts, prediction(parts)), 0.0, 2.0).draw(1.0)
        middle = rgb.shape[0] // 2
        bars = slice(20, rgb.shape[0] - 20)  # without words
        blue, orange = np.argwhere(marked(rgb[bars], "blue")), np.argwhere(marked(rgb[bars], "orange"))
        assert blue[:, 0].max() + 20 < middle < orange[:, 0].min() + 20
        assert 45 < blue[:, 1].min() < blue[:, 1].max() < 60  # the good ones score 0.25 of 2, which is 400 wide
        assert orange[:, 1].max() // 50 == 7  # 1.75

    def test_the_line_moves_with_the_threshold(self) -> None:
        parts = split()
        histogram = Histogram(Verdicts(parts, prediction(parts)), 0.0, 2.0)
        places = [
            np.median(np.argwhere(marked(histogram.draw(t)[40:70], "black"))[:, 1]) for t in (-5.0, 0.5, 1.5, 9.0)
        ]
        assert places == sorted(places)
        assert places[1] == pytest.approx(100, abs=2)
        assert places[2] == pytest.approx(300, abs=2)
        assert (histogram.draw(0.5) == histogram.draw(0.5)).all()

    def test_one_image(self) -> None:
        parts = split(["good/000"])
        assert Histogram(Verdicts(parts, prediction(parts)), 1.0, 1.0).draw(1.0).shape[2] == 3


class TestSheet:
    def test_frames(self) -> None:
        tile = np.zeros((88, 88, 3), np.uint8)
        words = ("right", "a miss", "a false alarm", "right, but not where the defect is")
        rgb = contact_sheet([Thumbnail(tile, "n", 1.0, w, False) for w in words])
        for i, colour in enumerate((None, "orange", "pink", "blue")):
            cell = rgb[:, i * 108 : (i + 1) * 108]
            for name in ("orange", "pink", "blue"):
                assert (marked(cell, name).sum() > 800) == (name == colour)

    def test_pages_follow_the_choice(self) -> None:
        explorer = many()
        assert explorer.sheet.page == list(range(16))
        assert "Thumbnails 1 to 16 of 21 images" in explorer.sheet.picture.tooltip
        explorer.picker.select("hole/018")
        assert explorer.sheet.page == [16, 17, 18, 19, 20]
        assert "hole/018 0.25" not in explorer.sheet.picture.tooltip
        assert "(chosen)" in explorer.sheet.picture.tooltip

    def test_follows_the_order(self, heat: HeatmapExplorer) -> None:
        heat.picker.order.value = "score, highest first"
        assert heat.sheet.page == [2, 3, 0, 1, 4]
        assert heat.sheet.picture.tooltip.index("hole/000") < heat.sheet.picture.tooltip.index("good/000")
        assert heat.picker.name == "good/000"
        parts = split()
        runs = RunComparison({"one": prediction(parts), "two": prediction(parts)}, parts)
        runs.picker.filter.value = "misses of a run"
        assert runs.sheet.page == list(runs.picker.listed)

    def test_a_press_chooses(self) -> None:
        explorer = many()
        explorer.sheet.press(108 * 3 + 50, 128 + 50)
        assert explorer.picker.name == "hole/011"
        explorer.picker.select("good/000")
        explorer.sheet.press(108 * 7 + 50, 50)  # nothing stands there
        assert explorer.picker.name == "good/000"

    def test_is_drawn_when_something_on_it_changes(self, heat: HeatmapExplorer) -> None:
        before = heat.sheet.picture.value
        heat.opacity.value = 0.2
        assert heat.sheet.picture.value is before
        heat.threshold.value = 1.74
        assert heat.sheet.picture.value is before
        heat.threshold.value = heat.threshold.min
        assert heat.sheet.picture.value != before


class TestLists:
    def test_misses_and_false_alarms(self, heat: HeatmapExplorer) -> None:
        heat.picker.filter.value = "misses"
        assert [NAMES[i] for i in heat.picker.listed] == ["stain/000"]
        assert heat.picker.name == "stain/000"
        heat.threshold.value = 0.2
        heat.picker.filter.value = "false alarms"
        assert [NAMES[i] for i in heat.picker.listed] == ["good/000", "good/001"]

    def test_the_list_follows_the_threshold_and_the_chosen_image_stays(self, heat: HeatmapExplorer) -> None:
        heat.picker.filter.value = "misses"
        heat.threshold.value = 0.2
        assert heat.picker.listed == ()
        assert heat.picker.name == "stain/000"
        assert heat.label.value.startswith("stain/000")
        heat.threshold.value = heat.threshold.max
        assert heat.threshold.value == pytest.approx(1.75, abs=0.05)

    def test_a_filter_that_lets_nothing_through_keeps_the_image(self, heat: HeatmapExplorer) -> None:
        heat.picker.select("hole/001")
        heat.picker.filter.value = "false alarms"
        assert heat.picker.listed == ()
        assert heat.picker.name == "hole/001"
        heat.picker.next.click()
        assert heat.picker.name == "hole/001"
        heat.picker.filter.value = "all"
        assert len(heat.picker.listed) == 5

    def test_order(self) -> None:
        keys = np.array([3.0, 5.0, 4.0, 5.0, 1.0])
        picker = ImagePicker({"": split()}, orders={"key": lambda _: keys})
        picker.select("hole/000")
        picker.order.value = "key"
        assert list(picker.listed) == [1, 3, 2, 0, 4]  # equal ones by name
        assert picker.name == "hole/000"
        picker.next.click()
        assert picker.name == "good/000"
        picker.defect.value = "hole"
        assert list(picker.listed) == [3, 2]
        picker.order.value = "name"
        assert list(picker.listed) == [2, 3]

    def test_a_list_goes_to_the_browser_with_its_choice(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """In one message: of two, the browser would answer the first with a choice of its own."""
        picker = ImagePicker({"": split()}, filters={"some": lambda _: np.array([0, 0, 1, 1, 0], bool)})
        sent: list[set[str]] = []
        monkeypatch.setattr(picker.image, "send_state", lambda k: sent.append({k} if isinstance(k, str) else set(k)))
        picker.filter.value = "some"
        assert sent == [{"_options_labels", "index"}]

    def test_two_images_of_one_name(self) -> None:
        picker = ImagePicker({"": split(["hole/000", "hole/000"])})
        assert len(picker.image.options) == 2
        picker.next.click()
        assert picker.chosen == ("", 1)

    def test_disagreement(self) -> None:
        parts = split()
        one = prediction(parts)
        two = Prediction(one.maps.clone(), one.scores.clone())
        two.maps[[1, 4]], two.scores[[1, 4]] = 1.5, 1.5
        scales = dict.fromkeys(("one", "two"), Calibration(0.0, 2.0, 1.0))
        runs = RunComparison({"one": one, "two": two}, parts, calibrations=scales)
        assert runs.overall.value.startswith("Verdicts differ on 2 images. one: 5 images: misses 33.3 % (1 of 3;")
        assert "two: 5 images: misses 0.0 % (0 of 3;" in runs.overall.value
        runs.picker.filter.value = "verdicts differ"
        assert [NAMES[i] for i in runs.picker.listed] == ["good/001", "stain/000"]
        runs.picker.filter.value = "false alarms of a run"
        assert [NAMES[i] for i in runs.picker.listed] == ["good/001"]
        runs.picker.filter.value = "all"
        runs.picker.order.value = "disagreement"
        assert {NAMES[i] for i in runs.picker.listed[:2]} == {"good/001", "stain/000"}
        runs.strictness.value = 2.0
        assert runs.differ().sum() == 0


class TestPoint:
    def test_read_out(self, heat: HeatmapExplorer) -> None:
        heat.picker.select("hole/000")
        heat.to_peak.click()
        assert (heat.x.value, heat.y.value) == (6, 12)
        assert heat.readout.value == "x = 6, y = 12: score 1.75, above the threshold, on the true mask"
        heat.x.value = 20
        assert heat.readout.value == "x = 20, y = 12: score 0.25, not above the threshold, not on the true mask"

    def test_events_of_the_canvas(self, heat: HeatmapExplorer) -> None:
        heat.picker.select("hole/000")
        canvas = heat.surfaces[1].canvas
        assert (canvas.height, canvas.width) == decoded(heat.surfaces[1].picture.value).shape[:2]
        at: dict[str, Any] = {"x": 8 * 6 + 4, "y": 20 + 8 * 12 + 4}
        send, shown = canvas._handle_frontend_event, [s.picture.value for s in heat.surfaces]
        send(None, {"event": "mouse_move", **at}, [])
        assert heat.readout.value.startswith("x = 6, y = 12: score 1.75")
        assert (heat.x.value, heat.y.value) == (16, 16)
        send(None, {"event": "mouse_out", **at}, [])
        assert heat.readout.value.startswith("x = 16, y = 16")
        send(None, {"event": "mouse_down", "x": 1, "y": 1}, [])  # above the panel
        assert (heat.x.value, heat.y.value) == (16, 16)
        send(None, {"event": "touch_start", "touches": [at]}, [])
        send(None, {"event": "touch_end", "touches": []}, [])
        assert (heat.x.value, heat.y.value) == (6, 12)
        assert all(s.picture.value is old for s, old in zip(heat.surfaces, shown, strict=True))  # nothing is drawn
        keys = {"shift_key": False, "ctrl_key": False, "meta_key": False}
        for key in ("ArrowRight", "ArrowDown", "ArrowDown", "ArrowLeft", "+", "+", "-", "Tab", "a"):
            send(None, {"event": "key_down", "key": key, **keys}, [])
        assert (heat.x.value, heat.y.value, heat.zoom.value) == (6, 14, 2)

    def test_zoom(self, heat: HeatmapExplorer) -> None:
        heat.picker.select("hole/000")
        heat.to_peak.click()
        heat.zoom.value = 4
        assert heat._scene.window == (2, 8, 8, 8)
        heat._press("score map", 0, 0)  # the upper left pixel of the window moves to its middle
        assert (heat.x.value, heat.y.value) == (2, 8)
        assert heat._scene.window == (0, 4, 8, 8)
        heat.x.value = heat.y.value = 31
        assert heat._scene.window == (24, 24, 8, 8)
        assert decoded(heat.png).shape == decoded(many().png).shape

    def test_a_window_shows_its_pixels(self) -> None:
        parts = split(shape=(64, 64))
        explorer = HeatmapExplorer(prediction(parts), parts, calibration=SCALE)
        explorer.zoom.value = 8
        explorer.truth.value = False
        left, top, right, bottom = explorer.boxes["image, true mask"]
        shown = decoded(explorer.png)[top:bottom, left:right]
        window = parts[0].image[:, 28:36, 28:36].permute(1, 2, 0).numpy()
        assert np.abs(shown[16::32, 16::32].astype(int) - window).max() < 20


class TestSaving:
    def test_a_button_writes_the_table(self, heat: HeatmapExplorer, tmp_path: Path) -> None:
        heat.table_path.value = str(tmp_path / "v.csv")
        heat.save.click()
        assert heat.status.value == f"written: {tmp_path / 'v.csv'}"
        assert (tmp_path / "v.csv").read_text().count("\n") == 6
        heat.table_path.value = str(tmp_path / "v.csv" / "w.csv")
        heat.save.click()
        assert heat.status.value.startswith("cannot write")
        assert "\n" not in heat.status.value

    def test_by_code(self, heat: HeatmapExplorer, tmp_path: Path) -> None:
        heat.threshold.value = 0.2
        text = heat.save_verdicts(tmp_path / "v.csv").read_text()
        assert text.count("a false alarm") == 2
        with pytest.raises(MlffnError):
            heat.save_verdicts(tmp_path / "v.csv" / "w.csv")


def test_the_whole_set_is_told(heat: HeatmapExplorer) -> None:
    assert heat.overall.value.startswith("5 images: misses 33.3 % (1 of 3;")
    assert heat.histogram.tooltip.startswith("Histogram of image scores, threshold at 1.00. 5 images: misses 33.3 %")
    before = heat.histogram.value
    heat.threshold.value = 0.2
    assert "false alarms 100.0 % (2 of 2;" in heat.overall.value
    assert heat.histogram.value != before
    assert isinstance(heat.histogram, ipywidgets.Image)
