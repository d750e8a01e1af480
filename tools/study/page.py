"""What `docs/study/` shows of the runs: tables in Markdown, and two pictures."""

from pathlib import Path

from prograd_fast.report.figures import shots_figure
from tools.study import pictures, results, tables

DRAWN_BY_SHOTS = ("zero-shot", "coop", "prograd", "kgcoop", "gda", "prolip")  # with more the bars hide each other


def tables_of(docs: Path) -> dict[str, str]:
    """All tables by title, made of `accuracies.csv` and `same-settings.csv`; those of README first."""
    runs, same = (results.read(docs / name) for name in ("accuracies.csv", "same-settings.csv"))
    sets = list(dict.fromkeys(run["set"] for run in runs))
    without = tables.of(runs, **{"lambda": 0.0})
    return {
        "projection": tables.projection_table(runs),
        "counts": tables.counts_table(runs),
        "same settings": tables.projection_table([*without, *same]),
        "counts at the same settings": tables.counts_table([*without, *same]),
        **{name: tables.methods_table(runs, name) for name in sets},
        "shots": tables.shots_table(runs, sets[0]),
    }


def write(docs: Path) -> None:
    """Write `tables.md`, `plane.png` and `shots.png`."""
    text = "\n".join(f"## {title}\n\n{table}" for title, table in tables_of(docs).items())
    (docs / "tables.md").write_text(f"# Tables of the study\n\n{text}", encoding="utf-8")
    runs = results.read(docs / "accuracies.csv")
    pictures.projection_plane(runs, docs / "plane.png")
    first = runs[0]["set"]
    drawn = [run for run in tables.by_shots(runs, first) if run["method"] in DRAWN_BY_SHOTS]
    shots_figure(drawn, tables.PARTS, docs / "shots.png", f"Accuracy on {first} against shots; bars: 95 % intervals")
