"""Drawings of a report as inline SVG, written by hand: points, lines and errors over two axes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from mips_dist.page import escape, nice

NUM_COLOURS = 8
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 10, 10, 44
_SHAPES = ("circle", "square", "diamond", "triangle")
_RADIUS = 4.5
_MANY = 250  # dots of one colour, above which they are drawn smaller

STYLE = """
:root{--c0:#1f6fbf;--c1:#d1570a;--c2:#1d8a5c;--c3:#b3388c;--c4:#7a5b00;--c5:#5b4fc4;--c6:#0b7f8c;
--c7:#a12a2a}
@media (prefers-color-scheme:dark){:root{--c0:#6cb2f5;--c1:#ff9a52;--c2:#5fd39c;--c3:#f18bd0;
--c4:#dcbb4a;--c5:#aca3ff;--c6:#55cfdb;--c7:#ff8f8f}}
.chart .dots{fill:none;stroke-linecap:round;stroke-width:5;stroke-opacity:.6}
.chart .many{stroke-width:2.6;stroke-opacity:.55}
.chart .curve{fill:none;stroke-width:1.6;stroke-opacity:.85}
.chart .whisker{stroke-width:1.4}
.chart .ideal{stroke:var(--soft);stroke-dasharray:5 4}
.key{display:inline-block;width:.9rem;height:.9rem;vertical-align:-.1rem}
.keys{display:flex;flex-wrap:wrap;gap:.15rem 1rem;padding:0;margin:.4rem 0;list-style:none;
font-size:.9rem;color:var(--soft)}
""" + "".join(f".c{k}{{stroke:var(--c{k})}}.f{k}{{fill:var(--c{k})}}\n" for k in range(NUM_COLOURS))


@dataclass(frozen=True, slots=True)
class Line:
    """Some points of one colour.

    Attributes
    ----------
    points
        (x, y) in data units, finite.
    colour
        A number; colours and shapes come round again after some.
    spread
        Half length of the error bar of each point; empty for none.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: int
    spread: Sequence[float] = field(default_factory=list)


class Axes:
    """Two axes with ticks, the way from data to the page, and what is drawn between them."""

    def __init__(
        self,
        x_range: tuple[float, float],
        y_range: tuple[float, float],
        labels: tuple[str, str],
        size: tuple[int, int] = (400, 280),
        log_y: bool = False,
        categories: Sequence[str] = (),
    ) -> None:
        """Draw the frame.

        Parameters
        ----------
        x_range, y_range
            What must fit, in data units; above 0 where the axis is logarithmic.
        labels
            Of the horizontal and the vertical axis.
        categories
            Names at 0, 1, 2, ... in place of numbers on the horizontal axis.
        """
        self._width, self._height = size
        self._log_y = log_y
        self._x = x_range if categories else _widened(*x_range)
        low, high = y_range
        if log_y:
            self._y = (math.log10(low) - 0.05, math.log10(high) + 0.05)
        else:
            self._y = _widened(low, high)
        self.parts: list[str] = []
        self._draw_y_ticks()
        if categories:
            self._draw_categories(categories)
        else:
            self._draw_x_ticks()
        middle_x, middle_y = (_LEFT + self._width - _RIGHT) / 2, (_TOP + self._floor) / 2
        self.parts.append(
            f'<text x="{middle_x:g}" y="{self._height - 6}" text-anchor="middle">'
            f"{escape(labels[0])}</text>"
            f'<text transform="translate(13 {middle_y:g}) rotate(-90)" text-anchor="middle">'
            f"{escape(labels[1])}</text>"
        )

    @property
    def _floor(self) -> int:
        return self._height - _BOTTOM

    def x(self, value: float) -> float:
        """Return where a value stands on the page."""
        low, high = self._x
        return _LEFT + (self._width - _LEFT - _RIGHT) * (value - low) / (high - low)

    def y(self, value: float) -> float:
        """Return where a value stands on the page."""
        low, high = self._y
        number = math.log10(value) if self._log_y else value
        return self._floor - (self._floor - _TOP) * (number - low) / (high - low)

    def draw_dots(self, line: Line) -> None:
        """Draw points as one path: a page of many thousands stays small."""
        many = " many" * (len(line.points) > _MANY)
        steps = "".join(f"M{self.x(x):.1f} {self.y(y):.1f}h0" for x, y in line.points)
        self.parts.append(f'<path class="dots{many} c{line.colour % NUM_COLOURS}" d="{steps}"/>')

    def draw_curve(self, line: Line) -> None:
        """Join points by a line."""
        points = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in line.points)
        self.parts.append(
            f'<polyline class="curve c{line.colour % NUM_COLOURS}" points="{points}"/>'
        )

    def draw_marks(self, line: Line, tips: Sequence[str]) -> None:
        """Draw a few points with a shape of their own, error bars and a text for the pointer."""
        spread = line.spread or [0.0] * len(line.points)
        for (x, y), half, tip in zip(line.points, spread, tips, strict=True):
            at = self.x(x)
            if half > 0:
                self.parts.append(
                    f'<line class="whisker c{line.colour % NUM_COLOURS}" x1="{at:.1f}" '
                    f'x2="{at:.1f}" y1="{self.y(y - half):.1f}" y2="{self.y(y + half):.1f}"/>'
                )
            self.parts.append(mark(line.colour, at, self.y(y), tip))

    def draw_diagonal(self) -> None:
        """Draw where both coordinates are equal."""
        low, high = max(self._x[0], self._y[0]), min(self._x[1], self._y[1])
        self.parts.append(
            f'<line class="ideal" x1="{self.x(low):.1f}" y1="{self.y(low):.1f}" '
            f'x2="{self.x(high):.1f}" y2="{self.y(high):.1f}"/>'
        )

    def svg(self, title: str) -> str:
        """Return the drawing; `title` says what it shows to those who cannot see it."""
        return (
            f'<svg class="chart" viewBox="0 0 {self._width} {self._height}" role="img">'
            f"<title>{escape(title)}</title>{''.join(self.parts)}</svg>"
        )

    def _draw_y_ticks(self) -> None:
        ticks = _log_ticks(*self._y) if self._log_y else _ticks(*self._y)
        for tick in ticks:
            at = self.y(tick)
            self.parts.append(
                f'<line class="grid" x1="{_LEFT}" x2="{self._width - _RIGHT}" '
                f'y1="{at:.1f}" y2="{at:.1f}"/>'
                f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{tick:g}</text>'
            )

    def _draw_x_ticks(self) -> None:
        for tick in _ticks(*self._x):
            at = self.x(tick)
            self.parts.append(
                f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{self._floor}"/>'
                f'<text x="{at:.1f}" y="{self._floor + 17}" text-anchor="middle">{tick:g}</text>'
            )

    def _draw_categories(self, names: Sequence[str]) -> None:
        room = max(3, int((self._width - _LEFT - _RIGHT) / len(names) / 7))
        for index, name in enumerate(names):
            short = name if len(name) <= room else name[: room - 1] + "…"
            self.parts.append(
                f'<text x="{self.x(index):.1f}" y="{self._floor + 17}" text-anchor="middle">'
                f"{escape(short)}</text>"
            )


def mark(colour: int, x: float, y: float, tip: str = "") -> str:
    """Draw one point; shape and colour go together, so that colour is not needed to tell."""
    paint = f'class="f{colour % NUM_COLOURS}"'
    r = _RADIUS
    shape = _SHAPES[colour % len(_SHAPES)]
    title = f"<title>{escape(tip)}</title>" if tip else ""
    if shape == "circle":
        return f'<circle {paint} cx="{x:.1f}" cy="{y:.1f}" r="{r}">{title}</circle>'
    corners = {
        "square": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
        "diamond": ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
        "triangle": ((0, -1.15), (1.1, 0.85), (-1.1, 0.85)),
    }[shape]
    points = " ".join(f"{x + r * dx:.1f},{y + r * dy:.1f}" for dx, dy in corners)
    return f'<polygon {paint} points="{points}">{title}</polygon>'


def keys(names: Sequence[tuple[str, int]]) -> str:
    """Return what the colours and shapes mean, as a list."""
    return _list([(name, mark(colour, 7, 7)) for name, colour in names])


def colour_keys(names: Sequence[tuple[str, int]]) -> str:
    """Return what the colours mean, where all points are dots or lines."""
    return _list(
        [
            (name, f'<circle class="f{colour % NUM_COLOURS}" cx="7" cy="7" r="4.5"/>')
            for name, colour in names
        ]
    )


def _list(drawn: Sequence[tuple[str, str]]) -> str:
    items = "".join(
        f'<li><svg class="key" viewBox="0 0 14 14" aria-hidden="true">{drawing}</svg> '
        f"{escape(name)}</li>"
        for name, drawing in drawn
    )
    return f'<ul class="keys">{items}</ul>'


def _widened(low: float, high: float) -> tuple[float, float]:
    """Return a range with a little room on both sides, never empty."""
    room = 0.04 * (high - low) or 0.5 * abs(high) or 0.5
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    step = nice((high - low) / 6)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [float(f"{k * step:.12g}") for k in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten within 10 ** low to 10 ** high, with 2 and 5 where there is room."""
    factors = (1, 2, 5) if high - low < 3 else (1,)
    exponents = range(math.floor(low), math.ceil(high) + 1)
    ticks = [float(f"{factor}e{exponent}") for exponent in exponents for factor in factors]
    ticks = [tick for tick in ticks if low <= math.log10(tick) <= high]
    return ticks if len(ticks) > 2 else _ticks(10**low, 10**high)
