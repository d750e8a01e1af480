"""All pictures, drawn from run records. Each is a PNG, which is written whole or not at all."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, ScalarFormatter
from numpy.typing import NDArray

from prograd_fast.files.writing import replacing
from prograd_fast.methods import METHODS
from prograd_fast.report.statistics import Spread, accuracies, mean_path
from prograd_fast.report.tables import TITLES
from prograd_fast.terminal.printable import printable
from prograd_fast.training import Record

# Okabe and Ito's colours, which colour-blind readers can tell apart. Methods of one colour differ in marker and dash.
_BLUE, _ORANGE, _GREEN, _PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
_COLOURS = ("#000000", "#56B4E9", "#D55E00", _GREEN, _BLUE, _ORANGE, _PURPLE)
_MARKERS, _DASHES = ("o", "s", "^", "D", "v", "P", "X"), ("-", "--", ":")


class Style(NamedTuple):
    """How a method is drawn, the same in every picture."""

    colour: str
    marker: str
    dash: str


def style_of(method: str) -> Style:
    """By the method's place in the list of all methods."""
    i = [m.name for m in METHODS].index(method)
    n = len(_COLOURS)
    return Style(_COLOURS[i % n], _MARKERS[(i + i // n) % len(_MARKERS)], _DASHES[i // n % len(_DASHES)])


def shots_figure(runs: Sequence[Record], parts: Sequence[str], path: Path, title: str) -> None:
    """Accuracy against shots: a panel for each part, a line for each method, bars with the 95 % interval of the mean.

    Args:
        runs: records of several shots.
        parts: which accuracies.
        path: the PNG to write.
        title: says what was done.
    """
    figure = _figure(title, len(parts))
    shots = sorted({run["shots"] for run in runs})
    for axes, part in zip(figure.subplots(1, len(parts), squeeze=False, sharey=True)[0], parts, strict=True):
        methods = _methods(runs)
        for i, method in enumerate(methods):
            of = {k: accuracies([run for run in runs if run["shots"] == k], method, part) for k in shots}
            known = [k for k in shots if of[k]]
            spreads = [Spread.of(of[k]) for k in known]
            colour, marker, dash = style_of(method)
            aside = 1 + 0.025 * (i - (len(methods) - 1) / 2)  # so that the bars of one number of shots stay apart
            axes.errorbar(
                [k * aside for k in known],
                [spread.mean for spread in spreads],
                [0 if spread.n == 1 else spread.half_width for spread in spreads],
                color=colour,
                marker=marker,
                linestyle=dash,
                markersize=4.5,
                linewidth=1.3,
                capsize=2.5,
                label=TITLES[method] if axes.get_subplotspec().colspan.start == 0 else None,
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(shots)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("pictures per class")
        axes.set_title(printable(part), fontsize=10, parse_math=False)  # may be the name of a user's folder
        axes.grid(axis="y", color="0.9")
    # the interval of two or three runs can reach beyond what an accuracy can be
    figure.axes[0].set_ylim(*np.clip(figure.axes[0].get_ylim(), 0, 100))
    figure.axes[0].set_ylabel("test accuracy in %")
    _legend(figure)
    _save(figure, path)


def plane_figure(runs: Sequence[Record], path: Path, title: str) -> None:
    """Base against new accuracy: a cross for each method, its arms the 95 % intervals; curves of equal harmonic mean.

    Args:
        runs: records of one number of shots, with accuracies on "base" and "new"; methods without both are left out.
        path: the PNG to write.
        title: says what was done.
    """
    figure = _figure(title, 1)
    axes = figure.subplots()
    for method in _methods(runs):
        base, new = (accuracies(runs, method, part) for part in ("base", "new"))
        if not base or not new:
            continue
        x, y = Spread.of(base), Spread.of(new)
        colour, marker, _ = style_of(method)
        across, up = (None if spread.n == 1 else spread.half_width for spread in (x, y))
        axes.errorbar(
            x.mean,
            y.mean,
            up,
            across,
            color=colour,
            marker=marker,
            elinewidth=0.9,
            linestyle="none",
            label=TITLES[method],
        )
    equal_harmonic_means(axes)
    _legend(figure)
    _save(figure, path)


def path_figure(runs: Sequence[Record], paths: Sequence[Record], path: Path, title: str) -> None:
    """Base against new accuracy: the mean path of each method through training, and the mean of those without one.

    Args:
        runs: records of one number of shots; of the methods without a path, those without both accuracies are left out.
        paths: "method" and "accuracy" on "base" and "new" by number of steps, for each run; the steps are the same.
        path: the PNG to write.
        title: says what was done.
    """
    figure = _figure(title, 1, height=5.4)
    axes = figure.subplots()
    followed = {of["method"] for of in paths}
    for method in _methods(runs):
        colour, marker, _ = style_of(method)
        if method not in followed:
            base, new = (accuracies(runs, method, part) for part in ("base", "new"))
            if base and new:
                axes.scatter(
                    np.mean(base), np.mean(new), s=70, color=colour, marker=marker, label=TITLES[method], zorder=3
                )
            continue
        points = mean_path(paths, method)
        axes.plot(
            *zip(*points.values(), strict=True),
            color=colour,
            marker="o",
            markersize=4,
            linewidth=1.6,
            label=f"{TITLES[method]} by steps",
        )
        for step, point in points.items():
            if step:
                axes.annotate(str(step), point, xytext=(4, 4), textcoords="offset points", color=colour, fontsize=8)
    equal_harmonic_means(axes)
    _legend(figure)
    _save(figure, path)


def equal_harmonic_means(axes: Axes) -> None:
    """Names the axes of a plane, and draws curves of equal harmonic mean behind what is there."""
    low, high = axes.set_xlim(*np.clip(axes.get_xlim(), 0, 100))
    bottom, top = axes.set_ylim(*np.clip(axes.get_ylim(), 0, 100))
    grid_x, grid_y = np.meshgrid(np.linspace(max(low, 0.1), high, 200), np.linspace(max(bottom, 0.1), top, 200))
    curves = axes.contour(
        grid_x, grid_y, 2 * grid_x * grid_y / (grid_x + grid_y), levels=6, colors="0.75", linewidths=0.8, zorder=0
    )
    axes.clabel(curves, fmt="H %g", fontsize=7)
    axes.set_xlabel("accuracy on base classes in % (trained on)")
    axes.set_ylabel("accuracy on new classes in % (never shown)")


def conflict_figure(runs: Sequence[Record], path: Path, title: str) -> bool:
    """Cosine between task and general gradient, and the share of conflicts, through training.

    Steps are put into bins of equal length; training may be of any length. The first step is left out, see `History`.

    Args:
        runs: records of one number of shots; methods without a general gradient are left out.
        path: the PNG to write.
        title: says what was done.

    Returns:
        Whether there was anything to draw.
    """
    figure = _figure(title, 2)
    left, right = figure.subplots(1, 2)
    drawn = False
    for method in _methods(runs):
        cosines = [run["steps"]["cosine"][1:] for run in runs if run["method"] == method and "steps" in run]
        arrays = [np.array(cosine, dtype=float) for cosine in cosines]
        arrays = [array for array in arrays if np.isfinite(array).any()]
        if not arrays:
            continue
        drawn = True
        bins = min(25, *(len(array) for array in arrays))
        colour, _, dash = style_of(method)
        x = (np.arange(bins) + 0.5) / bins * 100
        binned = [[part[np.isfinite(part)] for part in np.array_split(array, bins)] for array in arrays]
        cosine = np.array([[part.mean() if len(part) else np.nan for part in parts] for parts in binned])
        rate = np.array([[100 * (part < 0).mean() if len(part) else np.nan for part in parts] for parts in binned])
        there = np.isfinite(cosine).any(axis=0)
        low, middle, high = np.nanquantile(cosine[:, there], (0.25, 0.5, 0.75), axis=0)
        left.plot(x[there], middle, color=colour, linestyle=dash, label=TITLES[method])
        left.fill_between(x[there], low, high, color=colour, alpha=0.15, linewidth=0)
        right.plot(x[there], np.nanmean(rate[:, there], axis=0), color=colour, linestyle=dash)
    if not drawn:
        return False
    left.axhline(0, color="0.5", linewidth=0.8)
    left.set_ylim(-1.05, 1.05)
    right.set_ylim(-3, 103)
    for height, word in ((0.75, "agree"), (0.25, "conflict")):
        left.text(0.98, height, word, transform=left.transAxes, ha="right", va="center", color="0.4")
    left.set_ylabel("cosine of the two gradients")
    right.set_ylabel("steps in conflict in %")
    for axes in (left, right):
        axes.set_xlabel("training done in %")
    _legend(figure)
    _save(figure, path)
    return True


def curves_figure(run: Record, path: Path, title: str) -> bool:
    """Losses, and accuracy on training and validation pictures, through the training of one run.

    With mini-batches the line is the mean over each epoch's pictures, and the steps are faint behind it.

    Args:
        run: a record.
        path: the PNG to write.
        title: says what was done.

    Returns:
        Whether there was anything to draw: not for a method without steps.
    """
    if not run.get("steps", {}).get("task_loss"):
        return False
    steps = {name: np.array(values, dtype=float) for name, values in run["steps"].items()}  # None becomes NaN
    n, pictures = len(steps["task_loss"]), run["pictures"]["train"]
    batch = min(run["settings"].get("batch_size") or pictures, pictures)
    an_epoch = -(-pictures // batch)
    sizes = np.full(an_epoch, batch)
    sizes[-1] = pictures - batch * (an_epoch - 1)
    figure = _figure(title, 2)
    left, right = figure.subplots(1, 2)
    _curve(left, steps["task_loss"], sizes, "task loss", _BLUE)
    _curve(left, steps["general_loss"], sizes, "general loss", _ORANGE)
    _curve(right, 100 * steps["accuracy"], sizes, "training pictures", _GREEN)
    if validation := run.get("validation"):  # after each of the last epochs
        ends = n // an_epoch * an_epoch - an_epoch * np.arange(len(validation))[::-1]
        right.plot(ends, 100 * np.array(validation), color=_PURPLE, marker=".", label="validation pictures")
    left.set_ylabel("loss")
    left.set_ylim(min(0, left.get_ylim()[0]), None)
    right.set_ylabel("accuracy in %")
    right.set_ylim(-3, 103)
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.set_xlim(0, n + 1)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.grid(axis="y", color="0.9")
    _legend(figure)
    _save(figure, path)
    return True


def _curve(axes: Axes, values: NDArray[np.float64], sizes: NDArray[np.int64], label: str, colour: str) -> None:
    """Values of all steps, and their mean over each whole epoch of batches of these sizes; nothing for NaN alone."""
    if not np.isfinite(values).any():
        return
    x, y = np.arange(1, len(values) + 1), values
    if len(sizes) > 1:
        axes.plot(x, y, color=colour, alpha=0.2, linewidth=0.7)
        epochs = values[: len(values) // len(sizes) * len(sizes)].reshape(-1, len(sizes))
        x, y = len(sizes) * np.arange(1, len(epochs) + 1), epochs @ sizes / sizes.sum()
    axes.plot(x, y, color=colour, marker="o" if len(y) < 20 else None, markersize=3.5, label=label)


def cost_figure(runs: Sequence[Record], path: Path, title: str) -> None:
    """Seconds of training and peak memory of each method: bars of the median, a dot for each run.

    Args:
        runs: records of one number of shots.
        path: the PNG to write.
        title: says what was done.
    """
    methods = _methods(runs)[::-1]
    figure = _figure(title, 2, height=1.8 + 0.34 * len(methods))
    measures: list[tuple[str, Callable[[Record], float | None]]] = [
        ("training in seconds", lambda run: run["seconds"]["train"]),
        ("peak memory in MB", lambda run: None if run["memory"] is None else run["memory"] / 1e6),
    ]
    for axes, (label, measure) in zip(figure.subplots(1, 2, sharey=True), measures, strict=True):
        for y, method in enumerate(methods):
            found = [measure(run) for run in runs if run["method"] == method]
            values = [value for value in found if value is not None]
            if values:
                axes.barh(y, np.median(values), color=style_of(method).colour, alpha=0.75, height=0.6)
                axes.scatter(values, np.full(len(values), y), s=8, color="black", alpha=0.5, linewidths=0, zorder=3)
        axes.set_yticks(range(len(methods)), [TITLES[method] for method in methods])
        axes.set_xlabel(label)
        _remove_box(axes)
    _save(figure, path)


def _methods(runs: Sequence[Record]) -> list[str]:
    """In the order of the list of all methods."""
    there = {run["method"] for run in runs}
    return [method.name for method in METHODS if method.name in there]


def _figure(title: str, panels: int, height: float = 4.6) -> Figure:
    figure = Figure(figsize=(max(7.2, 3.6 * panels), height), dpi=150, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=9, parse_math=False)
    return figure


def _legend(figure: Figure) -> None:
    for axes in figure.axes:
        _remove_box(axes)
    figure.legend(frameon=False, loc="outside lower center", ncols=5, fontsize=8.5)


def _remove_box(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path) -> None:
    """Write the PNG. A letter that the font lacks is drawn as a box."""
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.savefig(temporary)
