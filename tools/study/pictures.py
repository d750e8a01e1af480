"""The pictures of the study's page."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from prograd_fast.files.writing import replacing
from prograd_fast.report.figures import equal_harmonic_means, style_of
from prograd_fast.report.statistics import accuracies
from prograd_fast.report.tables import TITLES
from tools.study.results import Run
from tools.study.tables import ORDER, SHOTS, of


def projection_plane(runs: Sequence[Run], path: Path) -> None:
    """Base against new classes, a panel for each set: an arrow from each method to the same with all of the projection.

    Args:
        runs: of the study; methods that cannot name new classes are left out.
        path: the PNG to write.
    """
    sets = list(dict.fromkeys(run["set"] for run in runs))
    figure = Figure(figsize=(6.2 * len(sets), 6.6), dpi=130, layout="constrained")
    figure.suptitle(
        f"What ProGrad's projection changes, {SHOTS} shots: from each method without it (marker) to the same with it "
        "(head of the arrow)",
        x=0.01,
        ha="left",
        fontsize=10,
    )
    for axes, name in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets, strict=True):
        here = of(runs, set=name, shots=SHOTS)
        for method in ORDER:
            own = of(here, method=method)
            lambdas = {run["lambda"] for run in own}
            if not own or any("new" not in run["accuracy"] for run in own) or lambdas not in ({None}, {0.0, 0.5, 1.0}):
                continue
            ends = [_point(of(own, **{"lambda": lambda_}), method) for lambda_ in sorted(lambdas, key=str)]
            if method != "zero-shot" and len(ends) == 1:
                continue
            colour, marker, _ = style_of(method)
            label = TITLES[method] if axes.get_subplotspec().colspan.start == 0 else None
            size = 140 if method == "zero-shot" else 45
            axes.scatter(*ends[0], s=size, color=colour, marker="*" if method == "zero-shot" else marker, label=label)
            if len(ends) > 1:
                arrow = {"arrowstyle": "-|>", "color": colour, "lw": 1.6, "shrinkA": 0, "shrinkB": 0}
                axes.annotate("", ends[-1], ends[0], arrowprops=arrow)
                axes.scatter(*ends[-1], s=0)  # so that the axes reach as far
            name_of = axes.annotate(
                TITLES[method], ends[-1], xytext=(5, 4), textcoords="offset points", fontsize=7.5, color=colour
            )
            name_of.set_path_effects([withStroke(linewidth=2, foreground="white")])
        axes.set_title(name, fontsize=10)
        equal_harmonic_means(axes)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside lower center", ncols=8, fontsize=8.5)
    with replacing(path) as temporary:
        figure.savefig(temporary)


def _point(runs: Sequence[Run], method: str) -> tuple[float, float]:
    base, new = (float(np.mean(accuracies(runs, method, part))) for part in ("base", "new"))
    return base, new
