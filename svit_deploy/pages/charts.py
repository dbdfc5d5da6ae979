"""Drawings as SVG: their colours are the page's, and what the pointer is on tells its figures."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

WIDTH, HEIGHT = 460, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 34, 44
COLOURS = 9
"""Series that the page has colours for; then they begin again."""
ROW, NAMED, LINE = 20, 160, 15
"""Pixels: from bar to bar, for their names, and from line to line of a legend."""

Point = tuple[float, float, str]
"""x, y, and what it is."""


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from `low` to `high`: multiples of 1, 2 or 5 times a power of ten."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / about))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda step: abs(span / step - about))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


class Chart:
    """A drawing with two axes.

    Args:
        x, y: lowest and highest value of the axis.
        x_label, y_label: what it shows, with its unit.
        names: of series, in the order of their colours; of others the colour is the next one.
    """

    def __init__(
        self,
        title: str,
        x: tuple[float, float],
        y: tuple[float, float],
        x_label: str,
        y_label: str,
        names: Sequence[str] = (),
    ) -> None:
        self.names = names
        self.title, self.x, self.y = title, _span(*x), _span(*y)
        self._parts: list[Markup] = []
        self._names: list[tuple[str, int]] = []
        self._axes(x_label, y_label)

    def bars(
        self, edges: Sequence[float], counts: Sequence[float], on: Sequence[float], name: str
    ) -> None:
        """Columns from edge to edge, each on top of `on`."""
        colour = self._series(name)
        for i, count in enumerate(counts):
            if count:
                left, right = self._x(edges[i]), self._x(edges[i + 1])
                top, foot = self._y(on[i] + count), self._y(on[i])
                shape = Markup(
                    '<rect class="s{} bar" x="{}" y="{}" width="{}" height="{}">'
                ).format(
                    colour, _n(left), _n(top), _n(max(0.5, right - left - 0.5)), _n(foot - top)
                )
                tip = f"{name}: {count:g} from {edges[i]:.3g} to {edges[i + 1]:.3g}"
                self._parts.append(shape + _tip(tip) + Markup("</rect>"))

    def dots(self, points: Sequence[Point], name: str) -> None:
        colour = self._series(name)
        for x, y, what in points:
            shape = Markup('<circle class="s{} dot" cx="{}" cy="{}" r="3">').format(
                colour, _n(self._x(x)), _n(self._y(y))
            )
            self._parts.append(shape + _tip(f"{name}: {what}") + Markup("</circle>"))

    def line(self, points: Sequence[Point], name: str) -> None:
        """Through points, which tell their figures."""
        self.dots(points, name)
        colour = self._names[-1][1]
        path = " ".join(f"{_n(self._x(x))},{_n(self._y(y))}" for x, y, _ in points)
        self._parts.append(Markup('<polyline class="l{}" points="{}"/>').format(colour, path))

    def mark(self, x: float, what: str) -> None:
        """A line from top to bottom."""
        if self.x[0] <= x <= self.x[1]:
            at = _n(self._x(x))
            shape = Markup('<line class="mark" x1="{}" x2="{}" y1="{}" y2="{}">').format(
                at, at, TOP, HEIGHT - BOTTOM
            )
            self._parts.append(shape + _tip(what) + Markup("</line>"))

    def svg(self) -> Markup:
        """The drawing, with a legend where it has several series."""
        head = Markup('<text class="title" x="{}" y="14">{}</text>').format(LEFT, self.title)
        legend, x = Markup(""), float(LEFT)
        for name, colour in self._names if len(self._names) > 1 else ():
            legend += Markup('<rect class="s{}" x="{}" y="20" width="9" height="9"/>').format(
                colour, _n(x)
            )
            legend += Markup('<text x="{}" y="28">{}</text>').format(_n(x + 13), name)
            x += 26 + 6.2 * len(name)
        return (
            Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
                WIDTH, HEIGHT, self.title
            )
            + head
            + legend
            + Markup("").join(self._parts)
            + Markup("</svg>")
        )

    def _series(self, name: str) -> int:
        place = self.names.index(name) if name in self.names else len(self._names)
        colour = place % COLOURS
        self._names.append((name, colour))
        return colour

    def _axes(self, x_label: str, y_label: str) -> None:
        foot, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        line = '<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>'
        grid = line.replace("axis", "grid")
        for value in ticks(*self.x):
            at = _n(self._x(value))
            self._parts.append(Markup(line).format(at, at, foot, foot + 4))
            self._say(at, foot + 16, f"{value:g}", "middle")
        for value in ticks(*self.y):
            at = _n(self._y(value))
            self._parts.append(Markup(grid).format(LEFT, right, at, at))
            self._say(_n(LEFT - 6), float(at) + 4, f"{value:g}", "end")
        self._parts.append(Markup(line).format(LEFT, right, foot, foot))
        self._say(_n((LEFT + right) / 2), HEIGHT - 8, x_label, "middle")
        turned = Markup('<text transform="translate(12 {}) rotate(-90)" text-anchor="middle">')
        turned = turned.format(_n((TOP + foot) / 2))
        self._parts.append(turned + escape(y_label) + Markup("</text>"))

    def _say(self, x: str, y: float, text: str, anchor: str) -> None:
        shape = Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>')
        self._parts.append(shape.format(x, _n(y), anchor, text))

    def _x(self, value: float) -> float:
        low, high = self.x
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def _y(self, value: float) -> float:
        low, high = self.y
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def stacked(
    title: str, bars: Sequence[tuple[str, Sequence[float]]], names: Sequence[str], unit: str
) -> Markup:
    """Bars below each other, each of parts one behind the other.

    Args:
        bars: a name, and the length of each part; one below 0 has none.
        names: of the parts, in the order of their colours.
    """
    longest = max(sum(max(part, 0.0) for part in parts) for _, parts in bars) or 1.0
    scale = (WIDTH - NAMED - RIGHT - 50) / longest
    drawn = [Markup('<text class="title" x="0" y="14">{}</text>').format(title)]
    x, y = 0.0, 28.0
    for place, name in enumerate(names):
        width = 26 + 6.2 * len(name)
        if x and x + width > WIDTH:
            x, y = 0.0, y + LINE
        drawn.append(
            Markup('<rect class="s{} bar" x="{}" y="{}" width="9" height="9"/>').format(
                place % COLOURS, _n(x), _n(y - 8)
            )
            + Markup('<text x="{}" y="{}">{}</text>').format(_n(x + 13), _n(y), name)
        )
        x += width
    for label, parts in bars:
        y, x = y + ROW, float(NAMED)
        drawn.append(
            Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(
                NAMED - 6, _n(y + 1), label
            )
        )
        for place, part in enumerate(parts):
            width = max(part, 0.0) * scale
            shape = Markup('<rect class="s{} bar" x="{}" y="{}" width="{}" height="14">').format(
                place % COLOURS, _n(x), _n(y - 10), _n(width)
            )
            drawn.append(shape + _tip(f"{label}, {names[place]}: {part:.3g} {unit}"))
            drawn.append(Markup("</rect>"))
            x += width
        total = Markup('<text x="{}" y="{}">{} {}</text>')
        drawn.append(total.format(_n(x + 4), _n(y + 1), f"{sum(parts):.3g}", unit))
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">')
    return head.format(WIDTH, _n(y + ROW / 2), title) + Markup("").join(drawn) + Markup("</svg>")


def _span(low: float, high: float) -> tuple[float, float]:
    """An axis has a length."""
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _n(value: float) -> str:
    return f"{value:.1f}"


def _tip(text: str) -> Markup:
    return Markup("<title>{}</title>").format(text)
