"""What `docs/study/` shows of the runs: tables in Markdown, and two pictures."""

from collections.abc import Sequence
from pathlib import Path

from prograd_fast.report.figures import shots_figure
from tools.study import pictures, tables
from tools.study.results import Run


def tables_of(runs: Sequence[Run]) -> dict[str, str]:
    """All tables by title, those of README first."""
    sets = list(dict.fromkeys(run["set"] for run in runs))
    return {
        "projection": tables.projection_table(runs),
        "counts": tables.counts_table(runs),
        **{name: tables.methods_table(runs, name) for name in sets},
        "shots": tables.shots_table(runs, sets[0]),
    }


def write(runs: Sequence[Run], docs: Path) -> None:
    """Write `tables.md`, `plane.png` and `shots.png`."""
    text = "\n".join(f"## {title}\n\n{table}" for title, table in tables_of(runs).items())
    (docs / "tables.md").write_text(f"# Tables of the study\n\n{text}", encoding="utf-8")
    pictures.projection_plane(runs, docs / "plane.png")
    first = runs[0]["set"]
    by_shots = tables.by_shots(runs, first)
    parts = ["base", "new", "harmonic mean"]
    shots_figure(by_shots, parts, docs / "shots.png", f"Accuracy on {first} against shots; bars: 95 % intervals")
