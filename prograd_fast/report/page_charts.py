"""Charts as SVG in the page's own colours, so that they are light or dark as the page is."""

import base64
from collections.abc import Sequence
from io import BytesIO
from math import floor, isfinite, log10
from typing import NamedTuple

import numpy as np
from PIL import Image

from prograd_fast.report.html import Html, join, tag
from prograd_fast.training.evaluation import Bin, IntArray

_WIDTH, _HEIGHT = 360, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 10, 36  # room for the axes
MOST_POINTS = 400  # of a line; more are averaged
_RIGHT_COLOUR, _WRONG_COLOUR = (31, 119, 214), (214, 69, 65)  # seen on light and dark


class Line(NamedTuple):
    """A line of a chart; values that are None leave a gap."""

    label: str
    values: Sequence[float | None]


def line_chart(title: str, x_label: str, lines: Sequence[Line], limits: tuple[float, float] | None = None) -> Html:
    """Values of each step, for several lines; empty where no line has a finite value.

    Args:
        title: above it.
        x_label: below it.
        lines: told apart by colour and dash.
        limits: of the y axis; None: those of the values.
    """
    binned = [(line.label, *_binned(line.values)) for line in lines]
    binned = [line for line in binned if len(line[1])]
    if not binned:
        return Html()
    n = max(len(line.values) for line in lines)
    values = np.concatenate([y for _, _, y in binned])
    low, high = limits or (float(values.min()), float(values.max()))
    ticks = _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    drawn = [_axes(ticks, low, high), *_x_ticks(n), _text(_middle(), _HEIGHT - 4, x_label, "middle")]
    for i, (_, x, y) in enumerate(binned):
        points = zip(_x(x, 1, max(2, n)), _y(y, low, high), strict=True)
        drawn.append(tag("polyline", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in points), class_=f"line c{i}"))
    return _figure(title, drawn, [label for label, *_ in binned])


def reliability_chart(bins: Sequence[Bin]) -> Html:
    """Accuracy against confidence: a bar for each bin of confidences, and the line where both are equal."""
    drawn = [_axes([0, 0.25, 0.5, 0.75, 1], 0, 1), _text(_middle(), _HEIGHT - 4, "confidence", "middle")]
    for tick, anchor in ((0, "start"), (0.5, "middle"), (1, "end")):
        drawn.append(_text(_at(tick), _HEIGHT - _BOTTOM + 14, f"{tick:g}", anchor))
    for one in bins:
        top, left, right = _level(one.accuracy), _at(one.low), _at(one.high)
        what = f"{one.n} pictures: confidence {100 * one.confidence:.1f} %, accuracy {100 * one.accuracy:.1f} %"
        bar = {"x": f"{left + 1:.1f}", "width": f"{right - left - 2:.1f}"}
        height = f"{_level(0) - top:.1f}"
        drawn.append(tag("rect", tag("title", what), **bar, y=f"{top:.1f}", height=height, class_="bar"))
    drawn.append(tag("line", x1=_at(0), y1=_level(0), x2=_at(1), y2=_level(1), class_="line ideal"))
    return _figure("Accuracy of predictions by their confidence; dashed: as it should be", drawn, [])


def interval_chart(rows: Sequence[tuple[float, float, float]], label: str) -> Html:
    """Small picture of accuracies in [0, 1] with their intervals, one below the other, the first one hollow."""
    width, step = 120, 9
    drawn = [tag("line", x1=x, x2=x, y1=0, y2=step * len(rows) + 2, class_="grid") for x in (1, 60, 119)]
    for i, (value, low, high) in enumerate(rows):
        y, c = step * i + 6, "c1" if i == 0 and len(rows) > 1 else "c0"
        scale = [f"{1 + 118 * share:.1f}" for share in (low, high, value)]
        drawn.append(tag("line", x1=scale[0], x2=scale[1], y1=y, y2=y, class_=f"line {c}"))
        drawn.append(tag("circle", cx=scale[2], cy=y, r=3, class_=f"dot {c}"))
    box = f"-4 0 {width + 8} {step * len(rows) + 2}"
    return tag("svg", *drawn, viewBox=box, width=width + 8, role="img", aria_label=label, class_="small")


def confusion_image(matrix: IntArray) -> Html:
    """A picture of (C, C) counts, a dot for each cell: right ones in one colour, mistakes in another."""
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    pixels = np.zeros((*matrix.shape, 4), np.uint8)
    pixels[..., :3] = _WRONG_COLOUR
    pixels[np.diag_indices(len(matrix))] = (*_RIGHT_COLOUR, 0)
    pixels[..., 3] = np.rint(255 * np.sqrt(share))
    n = len(matrix)
    what = f"Shares of {n} classes that were taken for {n} classes: rows are the true ones, columns the predicted ones"
    return tag("img", src=data_uri(Image.fromarray(pixels), "PNG"), alt=what, class_="cells")


def data_uri(image: Image.Image, kind: str, **options: int) -> str:
    """A picture in an address of its own, as PNG or JPEG."""
    content = BytesIO()
    image.save(content, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"


def _binned(values: Sequence[float | None]) -> tuple[np.ndarray, np.ndarray]:
    """Steps from 1 and finite values, means of bins where there are many."""
    y = np.array(values, dtype=float)  # None becomes NaN
    x = np.arange(1, len(y) + 1, dtype=float)
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if len(y) > MOST_POINTS:
        x, y = (np.array([part.mean() for part in np.array_split(a, MOST_POINTS)]) for a in (x, y))
    return x, y


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers, four to seven, of which the first is at most `low` and the last at least `high`."""
    span = high - low or abs(high) or 1.0
    if not isfinite(span):  # values at both ends of what a float holds
        return [low, high]
    unit = 10 ** floor(log10(span))
    step = next(unit * factor for factor in (0.2, 0.25, 0.5, 1, 2, 2.5) if span / (unit * factor) <= 5)
    first = floor(low / step + 1e-3)  # a hair below a tick is the tick
    ticks = [round(first * step, 12)]
    while ticks[-1] < high and len(ticks) < 9:
        ticks.append(round((first + len(ticks)) * step, 12))
    return ticks


def _axes(ticks: Sequence[float], low: float, high: float) -> Html:
    drawn = []
    for tick in ticks:
        y = float(_y(np.array(tick), low, high))
        drawn.append(tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="grid"))
        drawn.append(_text(_LEFT - 5, y + 4, f"{tick:.6g}", "end"))
    return join(*drawn)


def _x_ticks(n: int) -> list[Html]:
    places = {1: "start", round((1 + n) / 2): "middle", n: "end"}  # so that the outer ones stay inside
    return [
        _text(float(_x(np.array(step), 1, max(2, n))), _HEIGHT - _BOTTOM + 14, str(step), anchor)
        for step, anchor in places.items()
    ]


def _x(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return _LEFT + (values - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)


def _y(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return _HEIGHT - _BOTTOM - (values - low) / ((high - low) or 1) * (_HEIGHT - _TOP - _BOTTOM)


def _at(share: float) -> float:
    return round(float(_x(np.array(share), 0, 1)), 1)


def _level(share: float) -> float:
    return round(float(_y(np.array(share), 0, 1)), 1)


def _middle() -> float:
    return (_LEFT + _WIDTH - _RIGHT) / 2


def _text(x: float, y: float, value: str, anchor: str) -> Html:
    return tag("text", value, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)


def _figure(title: str, drawn: Sequence[Html], labels: Sequence[str]) -> Html:
    svg = tag("svg", *drawn, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=title, class_="chart")
    legend = [tag("span", label, class_=f"key k{i}") for i, label in enumerate(labels)] if len(labels) > 1 else []
    return tag("figure", tag("figcaption", title, *legend), svg)
