"""The demo's two pictures, drawn from run records."""

import warnings
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prograd_fast.files import replacing
from prograd_fast.report.summary import accuracies, mean_and_sd
from prograd_fast.report.table import TITLES
from prograd_fast.training import Record

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
# part -> what it is, colour of the bar, colour of the number on it
PARTS = {"base": ("base classes (trained on)", BLUE, "white"), "new": ("new classes (never shown)", ORANGE, "black")}
METHOD_COLOURS = {"coop": VERMILLION, "prograd": GREEN}


def accuracy_figure(runs: Sequence[Record], path: Path, title: str, chance: float) -> None:
    """Bars of mean accuracy on base and new classes per method, error bars of one standard deviation, a dot per run.

    Args:
        runs: records with "method" and "accuracy" on "base" and, where the method can, on "new".
        path: the PNG to write; all of it or nothing.
        title: says what was done.
        chance: accuracy of guessing, in percent.
    """
    figure, axes = _axes(title)
    methods = list(dict.fromkeys(run["method"] for run in runs))
    for side, (part, (label, colour, ink)) in zip((-0.2, 0.2), PARTS.items(), strict=True):
        for i, method in enumerate(methods):
            values = accuracies(runs, method, part)
            if not values:
                axes.text(i + side, chance + 1, "cannot\nname\nthem", ha="center", va="bottom", color="dimgray")
                continue
            mean, sd = mean_and_sd(values)
            axes.bar(i + side, mean, 0.38, color=colour, label=label if i == 0 else None)
            axes.errorbar(i + side, mean, sd if len(values) > 1 else None, color="black", capsize=4)
            spread = np.linspace(-0.09, 0.09, len(values))  # side by side, so that equal runs stay visible
            axes.scatter(i + side + spread, values, s=9, color="black", alpha=0.4, linewidths=0, zorder=3)
            axes.text(i + side, 0.5, f"{mean:.1f}", ha="center", va="bottom", color=ink, fontweight="bold")
    axes.axhline(chance, color="black", linestyle="--", linewidth=1, label=f"guessing ({chance:.1f} %)")
    axes.set_xticks(range(len(methods)), [TITLES[method] for method in methods])
    axes.set_ylabel("test accuracy in %")
    figure.legend(frameon=False, loc="outside lower center", ncols=3)
    save(figure, path)


def conflict_figure(runs: Sequence[Record], path: Path, title: str) -> None:
    """Cosine between task and general gradient at each step: median of the runs, and a band with their middle half.

    The first step is left out: there the student is the teacher, and the general gradient is zero but for rounding.

    Args:
        runs: records; those of CoOp and ProGrad are drawn.
        path: the PNG to write; all of it or nothing.
        title: says what is to be seen.
    """
    figure, axes = _axes(title)
    for method, colour in METHOD_COLOURS.items():
        tuned = [run for run in runs if run["method"] == method]
        # None (a zero gradient) becomes NaN, and so do the missing steps of a run that stopped early.
        cosine = np.array(list(zip_longest(*(run["steps"]["cosine"] for run in tuned))), dtype=float)[1:]
        rate = 100 * np.nanmean(np.array([run["conflict_rate"] for run in tuned], dtype=float))  # None: no second step
        step = np.arange(2, len(cosine) + 2)
        low, median, high = np.nanquantile(cosine, (0.25, 0.5, 0.75), axis=1)
        axes.plot(step, median, color=colour, label=f"{TITLES[method]}: conflict in {rate:.0f} % of the steps")
        axes.fill_between(step, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.axhline(0, color="black", linewidth=1)
    axes.set_ylim(-1.05, 1.05)
    for height, word in ((0.75, "agree"), (0.25, "conflict")):
        axes.text(1.01, height, word, transform=axes.transAxes, rotation=270, va="center")
    axes.set_xlabel("training step")
    axes.set_ylabel("cosine of the two gradients, before projection")
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    save(figure, path)


def _axes(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.5, 4.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=10.5)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, all of it or nothing. A letter that the font lacks is drawn as a box."""
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.savefig(temporary)
