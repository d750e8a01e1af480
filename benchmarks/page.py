"""The page of a recorded run: `python -m benchmarks.page benchmarks/results/FILE.json` writes docs/benchmarks.md."""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.compare import table

DOCS = Path(__file__).parents[1] / "docs"
PICTURE = Path("images") / "benchmarks.png"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """How many times better each row with a target is, on a logarithmic axis."""
    rows = [row for row in rows if row["target"] is not None][::-1]
    figure, axes = plt.subplots(figsize=(11, 0.45 * len(rows) + 1.4), layout="constrained")
    for y, row in enumerate(rows):
        axes.barh(y, row["ratio"] - 1, left=1, color="#d55e00" if row["missed"] else "#0072b2", height=0.6)
        axes.text(max(row["ratio"], row["target"], 1) * 1.06, y, f"{row['ratio']:.2g}×", va="center")
        axes.plot([row["target"]] * 2, [y - 0.42, y + 0.42], color="black", linewidth=2)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xticks([1, 2, 5, 10, 20, 50], ["1×", "2×", "5×", "10×", "20×", "50×"])
    axes.minorticks_off()
    axes.set_xlim(min(0.7, *(0.9 * row["ratio"] for row in rows)), 1.5 * max(row["ratio"] for row in rows))
    labels = [f"{row['work']}: {row['ours']}\nagainst {row['theirs']}" for row in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.set_xlabel("times better")
    title = "Time, bytes per second or memory on a CPU, medians. Black: what was aimed at; orange: missed"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Write docs/benchmarks.md and its picture from a recorded run.")
    parser.add_argument("results", type=Path, help="JSON that benchmarks.compare wrote")
    path = parser.parse_args().results
    report = json.loads(path.read_text(encoding="utf-8"))
    plot(report["rows"], DOCS / PICTURE)
    machine = "\n".join(f"- {name}: {value}" for name, value in report["machine"].items())
    load = report["load"]
    (DOCS / "benchmarks.md").write_text(
        f"""# Benchmarks

`make bench` measures on your machine; this is `{path.as_posix()}`, drawn by `python -m benchmarks.page`.

![How many times better each row is]({PICTURE.as_posix()})

{table(report["rows"])}

Both sides of a row run in one process, in turn; figures are medians, noise is the interquartile range over the median.
Memory is measured in a process for each side. Bytes are those that must move once everything is beyond the caches: 28
per element for AdamW, 40 for projection and AdamW, 16 for the dual loss with both cotangents. Load average
{load["start"]} before and {load["end"]} after.

{machine}
""",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
