"""What explorers are made of: controls with tooltips, a picker of images, and the box that shows the outcome."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from ..datasets.folder import Split
from ..errors import extra
from .panels import HEAD, Panel, compose
from .pointer import Act, Surface

with extra("notebooks"):
    import ipywidgets as w  # type: ignore[import-untyped]
    import traitlets

_STYLE = {"description_width": "5.5em"}
_CSS = """<style>
.mlffn-range .widget-readout {min-width: 9em; max-width: none}
.mlffn-surface {position: relative; overflow: visible}
.mlffn-surface canvas {position: absolute; left: 0; top: 0; width: 100%; height: 100%; margin: 0}
@media (hover: hover) {
  .mlffn-surface canvas {visibility: hidden}
  .mlffn-surface:hover canvas {visibility: visible}
}
</style>"""  # a canvas keeps the key Tab from the page: hidden while nothing points at it, it does not get the focus


Values = Callable[[str], np.ndarray]
"""A number, or yes or no, for every image of a category."""


class ImagePicker(w.VBox):
    """Choose an image of one split or several: by category, defect and name, or one after the other.

    Parameters
    ----------
    splits : mapping of str to Split
        By category; with a single one the choice of category is not shown.
    only_good : bool
        Offer good images only.
    filters : mapping of str to callable, optional
        What can be listed instead of all images, by name: a function of the category that returns (M,) bool.
    orders : mapping of str to callable, optional
        What the list can be sorted by instead of the name: a function of the category that returns (M,) numbers; the
        greatest comes first.

    Attributes
    ----------
    chosen : tuple
        Category, and index of the image in its split; a trait, to be observed.
    listed : tuple
        Indices of all images that the filters let through, in their order; a trait too.
    category, defect, image, filter, order : Dropdown
    previous, next : Button
    """

    chosen = traitlets.Tuple()
    listed = traitlets.Tuple()

    def __init__(
        self,
        splits: Mapping[str, Split],
        *,
        only_good: bool = False,
        filters: Mapping[str, Values] | None = None,
        orders: Mapping[str, Values] | None = None,
    ) -> None:
        self._names: dict[str, dict[str, int]] = {}
        self._only_good, self._filters, self._orders = only_good, dict(filters or {}), dict(orders or {})
        for category, split in splits.items():
            self._names[category] = self._named(category, split)
        self.category = dropdown("Category", list(splits), "Which parts to look at")
        self.defect = dropdown("Defect", ["all"], "Offer all images, the good ones, or those with one defect")
        self.image = dropdown("Image", [("", 0)], "The image: its defect and the name of its file")
        self.filter = dropdown("Show", ["all", *self._filters], "Offer all images, or those the threshold gets wrong")
        self.order = dropdown("Order", ["name", *self._orders], "What comes first when going to the next image")
        self.previous = button("Previous", "arrow-left", "Go to the image before", partial(self._step, -1))
        self.next = button("Next", "arrow-right", "Go to the next image", partial(self._step, 1))
        super().__init__()
        self._lay_out()
        self._relist()
        self.category.observe(self._relist, "value")
        self.defect.observe(self._list_images, "value")
        self.filter.observe(self._list_images, "value")
        self.order.observe(self.refresh, "value")
        self.image.observe(self._choose, "value")

    @property
    def name(self) -> str:
        """Defect and file name of the chosen image, such as ``"hole/003"``."""
        return self.name_of(self.image.value)

    def name_of(self, index: int) -> str:
        """Return the name of an image of the chosen category."""
        return next(name for name, i in self._names[self.category.value].items() if i == index)

    def select(self, name: str, category: str | None = None) -> None:
        """Choose an image by its name, such as ``"hole/003"``; ValueError if there is none."""
        category = self.category.value if category is None else category
        if category not in self._names:
            raise ValueError(f"there is no category {category!r}; choose from {', '.join(self._names)}")
        if name not in self._names[category]:
            raise ValueError(f"there is no image {name!r}; the first is {next(iter(self._names[category]))!r}")
        self.category.value, self.defect.value, self.filter.value = category, "all", "all"
        self.image.value = self._names[category][name]

    def add(self, category: str, split: Split) -> None:
        """Offer one category more, or another split in its place, and choose it."""
        self._names[category] = self._named(category, split)
        self.category.options = [(name or "given", name) for name in self._names]
        self.category.value = category
        self._lay_out()
        self._relist()

    def refresh(self, _: Any = None) -> None:
        """List anew, after what filters or sorts has changed; the chosen image stays, and stays listed."""
        self._list(keep=True)

    def _named(self, category: str, split: Split) -> dict[str, int]:
        named: dict[str, int] = {}
        for i, (defect, path) in enumerate(zip(split.defects, split.paths, strict=True)):
            name = f"{defect}/{path.stem}"
            if defect == "good" or not self._only_good:
                named[name if name not in named else f"{defect}/{path.name} ({i})"] = i
        if not named:
            raise ValueError(f"the split {category!r} holds no {'good ' if self._only_good else ''}image")
        return named

    def _lay_out(self) -> None:
        shown = [self.category] * (len(self._names) > 1) + [self.defect] * (not self._only_good) + [self.image]
        sifted = [self.filter] * bool(self._filters) + [self.order] * bool(self._orders)
        for control in (*shown, *sifted):  # all in a line where the page is as wide as a picture
            name = 5.5 if control in (shown[0], self.filter) else 4
            control.style.description_width = f"{name}em"
            control.layout.width = f"{name + (9.5 if control in (self.category, self.defect) else 13)}em"
        buttons = w.HBox([self.previous, self.next])
        self.children = [row(*shown, buttons), row(*sifted)] if sifted else [row(*shown, buttons)]

    def _step(self, step: int, _: Any) -> None:
        self.image.index = (self.image.index + step) % len(self.image.options)
        self.refresh()

    def _relist(self, _: Any = None) -> None:
        defects = {name.partition("/")[0] for name in self._names[self.category.value]}
        self._listing = True
        self.defect.options = ["all", *sorted(defects, key=lambda d: (d != "good", d))]
        self._listing = False
        self._list_images()

    def _list_images(self, _: Any = None) -> None:
        if not self._listing:
            self._list(keep=False)

    def _list(self, *, keep: bool) -> None:
        """List what the filters let through; with ``keep`` the chosen image too. Without any, only the chosen one."""
        category, names, wanted = self.category.value, self._names[self.category.value], self.defect.value
        passed = None if self.filter.value == "all" else self._filters[self.filter.value](category)
        keys = None if self.order.value == "name" else self._orders[self.order.value](category)
        fits = {i: wanted in ("all", n.partition("/")[0]) and (passed is None or passed[i]) for n, i in names.items()}
        old = self.chosen[1] if self.chosen and self.chosen[0] == category and self.chosen[1] in fits else None
        offered = [i for i, fit in fits.items() if fit or (keep and i == old)] or [
            next(iter(fits)) if old is None else old
        ]
        if keys is not None:
            offered.sort(key=lambda i: -keys[i])
        by_index = {i: name for name, i in names.items()}
        options = tuple((by_index[i], i) for i in offered)
        self._listing = True
        with self.image.hold_sync():
            if options != self.image.options:
                self.image.options = options
            self.image.value = old if keep and old is not None else offered[0]
        self._listing = False
        self._choose()
        self.listed = tuple(i for i in offered if fits[i])

    def _choose(self, _: Any = None) -> None:
        if not self._listing:
            self.chosen = (self.category.value, self.image.value)


PanelAct = Callable[[str, float, float], object]
"""``(title, right, down)``: a place on a panel in its pixels."""


class Explorer(w.VBox):
    """What all explorers share; a subclass says what they show.

    Parameters
    ----------
    *controls : Widget
        Above the outcome.
    below : sequence of Widget
        Beneath the picture.
    move, press : callable, optional
        What the pointer does on a panel.
    leave : callable, optional
        When it leaves, or a button or finger is lifted.
    key : callable, optional
        The name of a key that is pressed after a press.

    Attributes
    ----------
    label : Label
        The outcome in a line of text.
    surfaces : list of Surface
        The panels that are shown: only those that change are sent to the browser.
    table : HTML
    """

    def __init__(
        self,
        *controls: w.Widget,
        below: Sequence[w.Widget] = (),
        move: PanelAct | None = None,
        press: PanelAct | None = None,
        leave: Callable[[], object] | None = None,
        key: Callable[[str], object] | None = None,
    ) -> None:
        self.label = w.Label(layout={"width": "auto", "margin": "6px 2px"})
        self.surfaces: list[Surface] = []
        self.table = w.HTML()
        self._alt, self._panels, self._held = "", [Panel("", np.zeros((1, 1, 3), np.uint8))], 0
        self._acts = {"move": move, "press": press}, {"leave": leave, "key": key}
        self._pictures = row()
        self._pictures.add_class("mlffn-panels")
        style = w.HTML(_CSS, layout={"display": "none"})
        super().__init__([style, *controls, self.label, self._pictures, *below, self.table])
        self.add_class(f"mlffn-{type(self).__name__}")

    @property
    def png(self) -> bytes:
        """All panels as they stand, side by side in a PNG."""
        return compose(self._panels, self._alt)[0]

    @property
    def boxes(self) -> dict[str, tuple[int, int, int, int]]:
        """Left, top, right and bottom of every panel in :attr:`png`, by its title."""
        return compose(self._panels, self._alt)[1]

    @property
    def alt(self) -> str:
        """What the panels show, for who cannot see them; the last one's name in the browser."""
        return self._alt

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
        """Show the outcome: pictures first, for which the eye waits, and only those that have changed."""
        old, self._panels, self._alt = self._panels, list(panels), alt
        known = len(self.surfaces) == len(panels)
        if not known:
            self.surfaces = [self._surface(i) for i in range(len(panels))]
        for i, (surface, panel) in enumerate(zip(self.surfaces, panels, strict=True)):
            said = alt if i == len(panels) - 1 else panel.title
            if not (known and said == surface.picture.tooltip and panel.same(old[i])):
                surface.show(compose([panel], said)[0], said)
        if not known:
            self._pictures.children = self.surfaces
        self.label.value, self.table.value = text, table

    def _surface(self, number: int) -> Surface:
        """Return a panel's surface, which calls what the explorer does about the pointer."""

        def on_panel(act: PanelAct | None) -> Act | None:
            def called(x: float, y: float) -> None:
                panel = self._panels[number]
                height, width = panel.rgb.shape[:2]
                if act is not None and 0 <= x < width and 0 <= y - HEAD < height:
                    act(panel.title, x, y - HEAD)

            return called if act else None

        surface, (places, others) = Surface(), self._acts
        if any((*places.values(), *others.values())):
            surface.follow(**{k: on_panel(act) for k, act in places.items()}, **others)  # type: ignore[arg-type]
        return surface


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


def field(text: str, value: str, tooltip: str) -> w.Text:
    """Return a field for a line of text."""
    return w.Text(value, description=text, tooltip=tooltip, style=_STYLE, layout={"width": "24em"})


def slider(text: str, ends: tuple[float, float, float], value: Any, tooltip: str) -> w.Widget:
    """Return a slider for a number, or for a pair of numbers, with (least, most, step).

    The value must be whole steps above the least: the browser rounds it to them, and sends back what it made of it.
    """
    whole = isinstance(value, int) or (isinstance(value, tuple) and all(isinstance(v, int) for v in value))
    kinds = (w.IntSlider, w.IntRangeSlider) if whole else (w.FloatSlider, w.FloatRangeSlider)
    options: dict[str, Any] = dict(zip(("min", "max", "step"), ends, strict=True))
    options |= {"description": text, "tooltip": tooltip, "style": _STYLE, "layout": {"width": "21.5em"}}
    options |= {} if whole else {"readout_format": ".3g"}
    if not isinstance(value, tuple):
        return kinds[0](value=value, **options)
    made = kinds[1](value=value, **options)
    made.layout.width = "26em"
    made.add_class("mlffn-range")
    return made


def limits(low: float, high: float, step: float, value: Any) -> tuple[float, float, float]:
    """Return least, most and step of a slider from about ``low`` to ``high``, in whole steps from its value."""
    first, last = value if isinstance(value, tuple) else (value, value)
    least = first - math.ceil(max(first - low, 0) / step) * step
    return least, last + math.ceil(max(high - last, 0) / step) * step, step


def move(control: w.Widget, low: float, high: float, step: float, value: Any) -> None:
    """Set the value of a slider of floats, and a range from about ``low`` to ``high`` in whole steps from the value.

    All of it goes to the browser in one message: of several, the first would make it push the old value into the new
    range, and send that back as if a hand had moved the slider.
    """
    with control.hold_sync(), control.hold_trait_notifications():
        control.min, control.max, control.step = limits(low, high, step, value)
        control.value = value
