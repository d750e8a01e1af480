"""The tables of docs/which-method.md: `python -m tools.which_method` writes them again.

Published numbers are those of `prograd_fast/training/published.csv`; measured ones are those of
`docs/study/accuracies.csv`. Every sentence of the page that depends on a number is written here.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

from prograd_fast.methods import METHODS
from prograd_fast.report.tables import TITLES
from tools.blocks import table, write_blocks
from tools.measured_methods import measured, spread_of_runs

REPOSITORY = Path(__file__).parents[1]
PUBLISHED = REPOSITORY / "prograd_fast" / "training" / "published.csv"
MEASURED = REPOSITORY / "docs" / "study" / "accuracies.csv"
PAGE, COMMAND = REPOSITORY / "docs" / "which-method.md", "python -m tools.which_method"

MISTAKES = REPOSITORY / "docs" / "what-can-go-wrong.md"  # has a table of the study's runs too

AVERAGE, SHOTS = "average of 11", ("1", "2", "4", "8", "16")
# their published form trains weights of the image tower too, the library's the text side alone
TEXT_SIDE_ALONE = ("promptsrc", "lasp", "lasp-v")
NAMING = [method.name for method in METHODS if method.names_new_classes]

Row = dict[str, str]


def read(path: Path) -> list[Row]:
    """The lines of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def title(method: str) -> str:
    """The name of a method of the library; another one's as the file has it."""
    return TITLES.get(method, method)


def here(method: str) -> str:
    """Whether the library has the method as it was published."""
    if method in TEXT_SIDE_ALONE:
        return "text side"
    return "yes" if method in TITLES else "no"


def values(rows: Sequence[Row], of: str, shots: str, metric: str, backbone: str = "ViT-B/16") -> dict[str, list[float]]:
    """The published averages over 11 sets by method; several where sources disagree, the lowest first."""
    found: dict[str, list[float]] = {}
    for row in rows:
        facts = row["table"], row["dataset"], row["shots"], row["backbone"], row["metric"]
        if facts == (of, AVERAGE, shots, backbone, metric):
            found.setdefault(row["method"], []).append(float(row["value"]))
    return {method: sorted(several) for method, several in found.items()}


def leaders(found: dict[str, list[float]], n: int) -> list[str]:
    """The methods of the library with the highest numbers; where sources disagree the lowest counts."""
    return sorted((m for m in found if here(m) == "yes"), key=lambda method: -found[method][0])[:n]


def number(several: Sequence[float]) -> str:
    """A published number, or all that sources give."""
    return " or ".join(f"{value:.1f}" for value in several)


def aims(rows: Sequence[Row]) -> str:
    """Which method for which aim, with the published numbers that say so; README has this table too."""
    many, one = values(rows, "few-shot", "16", "accuracy"), values(rows, "few-shot", "1", "accuracy")
    both, new = values(rows, "base-to-new", "16", "h"), values(rows, "base-to-new", "16", "new")
    start = values(rows, "few-shot", "0", "accuracy")["zero-shot"]

    def named(methods: Sequence[str], found: dict[str, list[float]]) -> str:
        return ", ".join(f"{title(method)} {number(found[method])}" for method in methods)

    def take(methods: Sequence[str]) -> str:
        return ", ".join(f"`{method}`" for method in methods)

    best, few = leaders(many, 3), leaders(one, 3)
    wide, kept = (leaders({method: found for method, found in of.items() if method in NAMING}, 2) for of in (both, new))
    return table(
        ["your aim", "take", "published: ViT-B/16, mean of 11 sets, 16 pictures per class"],
        [
            [
                "most accuracy on classes that you have pictures of",
                take(best),
                f"{named(best, many)}; {named(['coop'], many)}, zero-shot {number(start)}",
            ],
            [
                "the same with one picture per class",
                take(few),
                f"one picture: {named(few, one)}; {named(['coop'], one)}",
            ],
            [
                "classes too that come later, by name alone",
                take(wide),
                f"harmonic mean: {named(wide, both)}; {named(['zero-shot', 'coop'], both)}",
            ],
            [
                "to forget as little as possible",
                take(kept),
                f"new classes: {named(kept, new)}; {named(['kgcoop', 'prograd', 'zero-shot', 'coop'], new)}",
            ],
            ["to train anything else, as LoRA in a tower", "`ProGradAdamW`", "no published number with the projection"],
        ],
    )


def sources(rows: Sequence[Row]) -> list[str]:
    """All sources, in the order of the file."""
    return list(dict.fromkeys(row["source"] for row in rows))


def base_to_new(rows: Sequence[Row]) -> str:
    """The published averages on base and new classes, by harmonic mean; every row that a source gives."""
    chosen = [row for row in rows if row["table"] == "base-to-new" and row["dataset"] == AVERAGE]
    found: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in chosen:
        found.setdefault((row["method"], row["source"], row["note"]), {})[row["metric"]] = row["value"]
    numbers = {source: str(i) for i, source in enumerate(sources(rows), start=1)}
    lines = [
        [title(method), here(method), of["base"], of["new"], of["h"], numbers[source], note]
        for (method, source, note), of in sorted(found.items(), key=lambda item: -float(item[1]["h"]))
    ]
    return table(["method", "here", "base", "new", "harmonic mean", "source", "note"], lines)


def few_shot(rows: Sequence[Row]) -> str:
    """The published averages by number of pictures, for each backbone."""
    parts = []
    for backbone in ("ViT-B/16", "RN50"):
        found: dict[tuple[str, str, str], dict[str, str]] = {}
        for row in rows:
            if (row["table"], row["dataset"], row["backbone"]) == ("few-shot", AVERAGE, backbone):
                found.setdefault((row["method"], row["source"], row["note"]), {})[row["shots"]] = row["value"]
        numbers = {source: str(i) for i, source in enumerate(sources(rows), start=1)}
        lines = []
        for (method, source, note), of in sorted(found.items(), key=lambda item: -float(item[1].get("16", "0"))):
            cells = [of["0"]] * len(SHOTS) if "0" in of else [of.get(shots, "") for shots in SHOTS]
            lines.append([title(method), here(method), *cells, numbers[source], note])
        parts.append(f"{backbone}:\n\n" + table(["method", "here", *SHOTS, "source", "note"], lines))
    return "\n".join(parts)


def conflicts(rows: Sequence[Row]) -> str:
    """Where sources disagree about the same number."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("method", "table", "dataset", "shots", "backbone", "metric"))
        found.setdefault(key, []).append(row)
    lines = []
    for (method, of, dataset, shots, backbone, metric), several in found.items():
        if len(several) > 1 and metric in ("h", "accuracy"):
            what = "harmonic mean" if metric == "h" else metric
            told = "; ".join(f"{row['value']} ({row['source']})" for row in several)
            lines.append([title(method), f"{of}, {dataset}, {shots} pictures, {backbone}, {what}", told])
    return table(["method", "number", "what sources say"], lines)


def legend(rows: Sequence[Row]) -> str:
    """The sources by their numbers."""
    return "".join(f"{i}. {source}\n" for i, source in enumerate(sources(rows), start=1))


def blocks() -> dict[str, str]:
    """The blocks of the page by name."""
    published = read(PUBLISHED)
    return {
        "aims": aims(published),
        "base to new": base_to_new(published),
        "few-shot": few_shot(published),
        "conflicts": conflicts(published),
        "sources": legend(published),
        "measured": measured(read(MEASURED)),
    }


if __name__ == "__main__":
    write_blocks(PAGE, blocks(), COMMAND)
    write_blocks(MISTAKES, {"draws": spread_of_runs(read(MEASURED))}, COMMAND)
