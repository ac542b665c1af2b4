"""A picture that says what the pointer does on it: a transparent canvas of ipycanvas lies over the PNG.

The browser scales both alike, so a place on the canvas is a pixel of the PNG. Where there is no front end for the
canvas the picture is there all the same, and all that the pointer does, controls do too.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from ..errors import extra

with extra("notebooks"):
    import ipycanvas  # type: ignore[import-untyped]
    import ipywidgets as w  # type: ignore[import-untyped]
    import traitlets

Act = Callable[[float, float], object]


class Picture(w.Image):
    """A PNG whose tooltip, shown on hovering and read aloud, says what it shows.

    The browser's side of ipywidgets 8.1 fails on the tooltip of a widget without a description; ``Image`` has none.
    """

    description = traitlets.Unicode("").tag(sync=True)

    def __init__(self) -> None:
        super().__init__(format="png", layout={"max_width": "100%", "align_self": "flex-start"})

    def show(self, png: bytes, alt: str) -> None:
        """Show a PNG; in one message, as the browser decodes the picture anew for each."""
        with self.hold_sync():
            self.tooltip, self.value = alt, png


class Surface(w.Box):
    """A picture under a transparent canvas.

    Attributes
    ----------
    picture : Picture
    canvas : Canvas
        As large as the PNG.
    """

    def __init__(self) -> None:
        self.picture = Picture()
        self.canvas = ipycanvas.Canvas(width=1, height=1, layout={"border": "0"})
        super().__init__([self.picture], layout={"align_self": "flex-start", "max_width": "100%"})
        self.add_class("mlffn-surface")

    def show(self, png: bytes, alt: str) -> None:
        """Show a PNG; the canvas takes its size."""
        size = struct.unpack(">II", png[16:24])
        if size != (self.canvas.width, self.canvas.height):
            with self.canvas.hold_sync():
                self.canvas.width, self.canvas.height = size
        self.picture.show(png, alt)

    def follow(
        self,
        *,
        move: Act | None = None,
        press: Act | None = None,
        leave: Callable[[], object] | None = None,
        key: Callable[[str], object] | None = None,
    ) -> None:
        """Lay the canvas over the picture and call functions with the place of the pointer, in pixels of the PNG.

        Parameters
        ----------
        move, press : callable, optional
            ``(x, y)``; a finger on a screen presses and moves too.
        leave : callable, optional
            The button or the finger is lifted, or the pointer leaves the picture.
        key : callable, optional
            The name of a key, while the canvas has the focus, which it has after a press.
        """
        canvas = self.canvas
        for act, mouse, touch in (
            (move, canvas.on_mouse_move, canvas.on_touch_move),
            (press, canvas.on_mouse_down, canvas.on_touch_start),
        ):
            if act is not None:
                mouse(act)
                touch(_first(act))
        if leave is not None:
            canvas.on_mouse_up(lambda *_: leave())
            canvas.on_mouse_out(lambda *_: leave())
            canvas.on_touch_end(lambda *_: leave())
        if key is not None:
            canvas.on_key_down(lambda name, *_: key(name))
        self.children = (self.picture, canvas)


def _first(act: Act) -> Callable[[list[tuple[float, float]]], Any]:
    return lambda touches: act(*touches[0]) if touches else None
