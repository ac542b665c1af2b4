"""What explorers are made of: controls with tooltips, a picker of images, and the box that shows the outcome."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from ..datasets.folder import Split
from ..errors import extra
from .panels import Panel, compose

with extra("notebooks"):
    import ipywidgets as w  # type: ignore[import-untyped]
    import traitlets

_STYLE = {"description_width": "5.5em"}
_CSS = "<style>.mlffn-range .widget-readout {min-width: 9em; max-width: none}</style>"  # else two numbers are cut off


class ImagePicker(w.VBox):
    """Choose an image of one split or several: by category, defect and name, or one after the other.

    Parameters
    ----------
    splits : mapping of str to Split
        By category; with a single one the choice of category is not shown.
    only_good : bool
        Offer good images only.

    Attributes
    ----------
    chosen : tuple
        Category, and index of the image in its split; a trait, to be observed.
    category, defect, image : Dropdown
    previous, next : Button
    """

    chosen = traitlets.Tuple()

    def __init__(self, splits: Mapping[str, Split], *, only_good: bool = False) -> None:
        self._names = {}
        for category, split in splits.items():
            named = enumerate(zip(split.defects, split.paths, strict=True))
            self._names[category] = {f"{d}/{p.stem}": i for i, (d, p) in named if d == "good" or not only_good}
            if not self._names[category]:
                raise ValueError(f"the split {category!r} holds no {'good ' if only_good else ''}image")
        self.category = dropdown("Category", list(splits), "Which parts to look at")
        self.defect = dropdown("Defect", ["all"], "Offer all images, the good ones, or those with one defect")
        self.image = dropdown("Image", [("", 0)], "The image: its defect and the name of its file")
        self.previous = button("Previous", "arrow-left", "Go to the image before", partial(self._step, -1))
        self.next = button("Next", "arrow-right", "Go to the next image", partial(self._step, 1))
        shown = [self.category] * (len(splits) > 1) + [self.defect] * (not only_good) + [self.image]
        for control in shown:  # all in a line where the page is as wide as a picture
            name = 5.5 if control is shown[0] else 4
            control.style.description_width = f"{name}em"
            control.layout.width = f"{name + (13 if control is self.image else 9.5)}em"
        super().__init__([row(*shown, w.HBox([self.previous, self.next]))])
        self._list_defects()
        self.category.observe(self._list_defects, "value")
        self.defect.observe(self._list_images, "value")
        self.image.observe(self._choose, "value")

    @property
    def name(self) -> str:
        """Defect and file name of the chosen image, such as ``"hole/003"``."""
        return str(self.image.label)

    def select(self, name: str, category: str | None = None) -> None:
        """Choose an image by its name, such as ``"hole/003"``; ValueError if there is none."""
        category = self.category.value if category is None else category
        if category not in self._names:
            raise ValueError(f"there is no category {category!r}; choose from {', '.join(self._names)}")
        if name not in self._names[category]:
            raise ValueError(f"there is no image {name!r}; the first is {next(iter(self._names[category]))!r}")
        self.category.value, self.defect.value = category, "all"
        self.image.value = self._names[category][name]

    def _step(self, step: int, _: Any) -> None:
        self.image.index = (self.image.index + step) % len(self.image.options)

    def _list_defects(self, _: Any = None) -> None:
        defects = {name.partition("/")[0] for name in self._names[self.category.value]}
        self.defect.options = ["all", *sorted(defects, key=lambda d: (d != "good", d))]
        self._list_images()

    def _list_images(self, _: Any = None) -> None:
        names, wanted = self._names[self.category.value], self.defect.value
        self.image.options = [(n, i) for n, i in names.items() if wanted in ("all", n.partition("/")[0])]
        self._choose()

    def _choose(self, _: Any = None) -> None:
        self.chosen = (self.category.value, self.image.value)


class Picture(w.Image):
    """A PNG whose tooltip, shown on hovering and read aloud, says what it shows.

    The browser's side of ipywidgets 8.1 fails on the tooltip of a widget without a description; ``Image`` has none.
    """

    description = traitlets.Unicode("").tag(sync=True)


class Explorer(w.VBox):
    """What all explorers share; a subclass says what they show.

    Attributes
    ----------
    label : Label
        The outcome in a line of text.
    picture : Picture
        The PNG that is shown.
    table : HTML
    boxes : dict
        Left, top, right and bottom of every panel in the picture, by its title.
    """

    def __init__(self, *controls: w.Widget) -> None:
        self.label = w.Label(layout={"width": "auto", "margin": "6px 2px"})
        self.picture = Picture(format="png", layout={"max_width": "100%", "align_self": "flex-start"})
        self.table = w.HTML()
        self.boxes: dict[str, tuple[int, int, int, int]] = {}
        self._held = 0
        style = w.HTML(_CSS, layout={"display": "none"})
        super().__init__([style, *controls, self.label, self.picture, self.table])
        self.add_class(f"mlffn-{type(self).__name__}")

    @property
    def png(self) -> bytes:
        """The picture as it stands."""
        return bytes(self.picture.value)

    @property
    def alt(self) -> str:
        """What the picture shows, for who cannot see it."""
        return str(self.picture.tooltip)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Set several controls in a ``with`` block and draw once, at its end."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        self._changed()

    def redraw(self) -> None:
        """Bring label, picture and table up to date; a change of a control does so of its own accord."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {self.label.value}"

    def _watch(self, *controls: w.Widget) -> None:
        for control in controls:
            control.observe(self._changed, "chosen" if isinstance(control, ImagePicker) else "value")

    def _changed(self, _: Any = None) -> None:
        if not self._held:
            self.redraw()

    def _publish(self, text: str, alt: str, panels: Sequence[Panel], table: str) -> None:
        png, self.boxes = compose(panels, alt)
        self.label.value, self.picture.tooltip, self.picture.value, self.table.value = text, alt, png, table


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return an HTML table; without rows only its caption."""

    def line(kind: str, cells: Sequence[object]) -> str:
        style = "padding: 1px 12px 1px 0; text-align: left; font-weight: " + ("600" if kind == "th" else "400")
        return "<tr>" + "".join(f'<{kind} style="{style}">{html.escape(str(c))}</{kind}>' for c in cells) + "</tr>"

    body = "".join(line("td", row) for row in rows)
    title = f'<caption style="text-align: left">{html.escape(caption)}</caption>'
    return f'<table style="line-height: 1.4">{title}{line("th", columns) if body else ""}{body}</table>'


def row(*widgets: w.Widget) -> w.HBox:
    """Return widgets side by side, in several lines where they do not fit."""
    return w.HBox(widgets, layout={"flex_flow": "row wrap"})


def button(text: str, icon: str, tooltip: str, act: Any) -> w.Button:
    """Return a button that calls ``act`` with itself."""
    made = w.Button(description=text, icon=icon, tooltip=tooltip, layout={"width": "auto"})
    made.on_click(act)
    return made


def dropdown(text: str, options: Sequence[Any], tooltip: str) -> w.Dropdown:
    """Return a choice of one of several options."""
    return w.Dropdown(options=options, description=text, tooltip=tooltip, style=_STYLE, layout={"width": "15.5em"})


def slider(text: str, limits: tuple[float, float, float], value: Any, tooltip: str) -> w.Widget:
    """Return a slider for a number, or for a pair of numbers, with (least, most, step).

    The value must be whole steps above the least: the browser rounds it to them, and sends back what it made of it.
    """
    whole = isinstance(value, int) or (isinstance(value, tuple) and all(isinstance(v, int) for v in value))
    kinds = (w.IntSlider, w.IntRangeSlider) if whole else (w.FloatSlider, w.FloatRangeSlider)
    options: dict[str, Any] = dict(zip(("min", "max", "step"), limits, strict=True))
    options |= {"description": text, "tooltip": tooltip, "style": _STYLE, "layout": {"width": "21.5em"}}
    options |= {} if whole else {"readout_format": ".3g"}
    if not isinstance(value, tuple):
        return kinds[0](value=value, **options)
    made = kinds[1](value=value, **options)
    made.layout.width = "26em"
    made.add_class("mlffn-range")
    return made


def move(control: w.Widget, low: float, high: float, step: float, value: Any) -> None:
    """Set the value of a slider of floats, and a range from about ``low`` to ``high`` in whole steps from the value.

    All of it goes to the browser in one message: of several, the first would make it push the old value into the new
    range, and send that back as if a hand had moved the slider.
    """
    first, last = value if isinstance(value, tuple) else (value, value)
    with control.hold_sync(), control.hold_trait_notifications():
        control.min = first - math.ceil(max(first - low, 0) / step) * step
        control.max = last + math.ceil(max(high - last, 0) / step) * step
        control.step, control.value = step, value
