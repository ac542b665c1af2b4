"""The painter's brush: by code, by controls, and by the events that a browser sends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from explored import SIDE, detector, split

from course.brush import Stroke, brush
from course.explorers import PseudoPainter

IMAGE = split()[0].image
LINE = ((0.25, 0.5), (0.75, 0.5))


@pytest.fixture
def painter() -> PseudoPainter:
    parts = split()
    return PseudoPainter(detector(parts), parts)


def test_a_stroke_is_as_long_and_wide_as_asked() -> None:
    painted, mask = brush(IMAGE, [Stroke(LINE, 0.125, "#ff0000")])
    rows, columns = mask.nonzero().T
    assert 4 <= int(rows.max()) - int(rows.min()) + 1 <= 5  # an eighth of 32 px; an edge may touch one more
    assert rows.float().mean() == pytest.approx(15.5, abs=0.6)
    assert columns.min() in (5, 6)  # a quarter of 32 px, and half a width before it
    assert columns.max() in (25, 26)
    assert painted[:, 15, 16].tolist() == pytest.approx([1, 0, 0], abs=1e-5)
    assert torch.equal(painted[:, ~mask], (IMAGE / 255)[:, ~mask])


def test_strength_is_opacity() -> None:
    half, _ = brush(IMAGE, [Stroke(LINE, 0.2, "white")], strength=0.5)
    assert half[:, 15, 16].tolist() == pytest.approx(((IMAGE[:, 15, 16] / 255 + 1) / 2).tolist(), abs=1e-5)
    nothing, mask = brush(IMAGE, [Stroke(LINE, 0.2, "white")], strength=0)
    assert torch.equal(nothing, IMAGE / 255)
    assert not mask.any()


def test_a_later_stroke_covers_an_earlier_one() -> None:
    painted, _ = brush(IMAGE, [Stroke(LINE, 0.2, "#ff0000"), Stroke(((0.5, 0.5),), 0.1, "#0000ff")])
    assert painted[:, 16, 16].tolist() == pytest.approx([0, 0, 1], abs=1e-5)
    assert painted[:, 16, 10].tolist() == pytest.approx([1, 0, 0], abs=1e-5)


@pytest.mark.parametrize(
    ("stroke", "says"),
    [
        (Stroke((), 0.1, "red"), "needs a point"),
        (Stroke(LINE, 0, "red"), "size in"),
        (Stroke(LINE, 0.1, "no colour"), "unknown color"),
    ],
)
def test_bad_strokes(painter: PseudoPainter, stroke: Stroke, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        brush(IMAGE, [stroke])
    with pytest.raises(ValueError, match=says):
        painter.stroke(stroke.points, size=stroke.size, colour=stroke.colour)
    assert painter.strokes == []
    with pytest.raises(ValueError, match="strength"):
        brush(IMAGE, [], strength=2)


def test_by_code(painter: PseudoPainter) -> None:
    painter.stroke(LINE, size=0.1, colour="#ffffff")
    assert painter.kind.value == "brush"
    assert painter.label.value.startswith("brush on good/000, ")
    assert painter.anomalous
    peak = divmod(int(painter.after.maps[0].argmax()), SIDE)
    assert painter.mask[peak]
    drawn = painter.mask.clone()
    painter.stroke([(0.5, 0.1)], size=0.1)
    assert painter.mask.sum() > drawn.sum()
    painter.undo.click()
    assert torch.equal(painter.mask, drawn)
    painter.picker.next.click()  # the same strokes on the next image
    assert painter.label.value.startswith("brush on good/001")
    assert (painter.mask & drawn).sum() > 0.9 * drawn.sum()
    painter.clear.click()
    assert not painter.mask.any()
    assert torch.equal(painter.after.maps, painter.before.maps)


def test_by_keyboard(painter: PseudoPainter) -> None:
    painter.kind.value = "brush"
    assert not painter.mask.any()
    painter.x.value, painter.y.value, painter.size.value = 0.24, 0.76, 0.1
    painter.dot.click()
    rows, columns = painter.mask.nonzero().float().mean(0).tolist()
    assert (columns, rows) == pytest.approx((0.24 * SIDE, 0.76 * SIDE), abs=1)


def test_by_pointer(painter: PseudoPainter) -> None:
    send = painter.surfaces[1].canvas._handle_frontend_event

    def at(x: float, y: float) -> dict[str, Any]:
        return {"x": x * 208, "y": 20 + y * 208}

    send(None, {"event": "mouse_down", **at(0.25, 0.75)}, [])  # another kind is put there
    assert (painter.x.value, painter.y.value) == (0.25, 0.75)
    painter.kind.value, painter.size.value = "brush", 0.1
    send(None, {"event": "mouse_move", **at(0.9, 0.9)}, [])  # nothing is pressed
    send(None, {"event": "mouse_down", **at(0.25, 0.5)}, [])
    send(None, {"event": "mouse_move", **at(0.5, 0.5)}, [])
    send(None, {"event": "mouse_move", "x": 1.0, "y": 1.0}, [])  # above the panel
    send(None, {"event": "mouse_move", **at(0.75, 0.5)}, [])
    assert painter.strokes == []
    send(None, {"event": "mouse_up", **at(0.75, 0.5)}, [])
    send(None, {"event": "mouse_out", **at(0.75, 0.5)}, [])
    assert len(painter.strokes) == 1
    assert painter.strokes[0].points == ((0.25, 0.5), (0.5, 0.5), (0.75, 0.5))
    assert painter.mask[SIDE // 2, SIDE // 4 : 3 * SIDE // 4].all()
    assert not painter.mask[: SIDE // 4].any()
    send = painter.surfaces[3].canvas._handle_frontend_event  # a score map is not painted on
    send(None, {"event": "mouse_down", **at(0.25, 0.5)}, [])
    send(None, {"event": "mouse_up", **at(0.25, 0.5)}, [])
    assert len(painter.strokes) == 1
