"""The page of recorded runs: `python -m benchmarks.page FILE.json FILE-prompt-step.json FILE-neighbours.json`.

It writes docs/benchmarks.md and its pictures.
"""

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
PROMPT_PICTURE = Path("images") / "prompt_step.png"
NEIGHBOURS_PICTURE = Path("images") / "neighbours.png"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """How many times better each row with a target is, on a logarithmic axis."""
    rows = [row for row in rows if row["target"] is not None and row["unit"] in ("s", "MB", "GB/s")][::-1]
    figure, axes = plt.subplots(figsize=(11, 0.45 * len(rows) + 1.4), layout="constrained")
    for y, row in enumerate(rows):
        axes.barh(y, row["ratio"] - 1, left=1, color="#d55e00" if row["missed"] else "#0072b2", height=0.6)
        ratio = f"{row['ratio']:.0f}" if row["ratio"] >= 100 else f"{row['ratio']:.2g}"
        axes.text(max(row["ratio"], row["target"], 1) * 1.06, y, f"{ratio}×", va="center")
        axes.plot([row["target"]] * 2, [y - 0.42, y + 0.42], color="black", linewidth=2)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    ticks = [1, 2, 5, 10, 20, 50, 100]
    axes.set_xticks(ticks, [f"{tick}×" for tick in ticks])
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


def _machine(report: dict[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in report["machine"].items())


def _places(*reports: dict[str, Any]) -> str:
    """The processors, each once: a figure holds for the one that it was measured on."""
    return " and ".join(dict.fromkeys(f"{one['machine']['cores']} cores of {one['machine']['cpu']}" for one in reports))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Write docs/benchmarks.md and its pictures from recorded runs.")
    parser.add_argument("results", type=Path, help="JSON that benchmarks.compare wrote")
    parser.add_argument("prompt_step", type=Path, help="JSON that benchmarks.prompt_step wrote")
    parser.add_argument("neighbours", type=Path, help="JSON that benchmarks.neighbours wrote")
    options = parser.parse_args()
    files = options.results, options.prompt_step, options.neighbours
    report, prompt, neighbours = (json.loads(path.read_text("utf-8")) for path in files)
    plot(report["rows"], DOCS / PICTURE)
    plot(prompt["rows"], DOCS / PROMPT_PICTURE)
    plot(neighbours["rows"], DOCS / NEIGHBOURS_PICTURE)
    loads = [(one["load"]["start"], one["load"]["end"]) for one in (report, prompt, neighbours)]
    (DOCS / "benchmarks.md").write_text(
        f"""# Benchmarks

`make bench` measures on your machine. The figures of this page were measured on {_places(report, prompt, neighbours)}.
`python -m benchmarks.page` wrote the page from `{options.results.as_posix()}`,
`{options.prompt_step.as_posix()}` and
`{options.neighbours.as_posix()}`.

Both sides of a row run in one process, in turn; memory is measured in a process for each side. Figures are medians.

| column | meaning |
| --- | --- |
| ratio | how many times better ours is than theirs |
| at least | the ratio that was aimed at; a row that falls short says MISSED and what takes the time |
| of bandwidth, of floor | the share of what the memory, or the matrix products alone, would allow |
| noise | interquartile range over the median |
| others | cores that other processes kept busy meanwhile; above 0.1 figures of several threads mean little |

## Losses and optimizer steps

![How many times better each row is]({PICTURE.as_posix()})

{table(report["rows"])}

Bytes per second count the bytes that must move where nothing fits into the caches: 28 per element for AdamW, 40 for
projection and AdamW, 16 for the dual loss with both cotangents. The load average was {loads[0][0]} before and
{loads[0][1]} after.

## The prompt step

The step has the text tower of CLIP RN50 and ViT-B/16 (512 wide, 12 blocks) with random weights, ImageNet's class names,
16 context tokens and 32 pictures. [prompt-step.md](prompt-step.md) explains what is saved.

![How many times better each row is]({PROMPT_PICTURE.as_posix()})

{table(prompt["rows"], "of floor")}

The floor is the time of the matrix products that a step cannot do without, each measured alone on its own shapes. One
floor takes the product that the encoder uses (oneDNN's, with packed weights), the other `torch.nn.functional.linear`
(MKL's). The load average was {loads[1][0]} before and {loads[1][1]} after.

## Operators of the neighbours

Forward with backward, as a training step calls them, on one thread of {_places(neighbours)}
(`OMP_NUM_THREADS=1 python -m benchmarks.neighbours`). The formula is what
`prograd_fast.reference` has, or what the authors write, operator by operator of PyTorch. There are sizes that stay in
the caches, and sizes whose results are written past them: shapes of clips, or the number of faces with 98 landmarks
(128 features each, along edges), of heat maps of 64 × 64, of masks of 448 × 448. Times are what the processor gave
to this process. Others kept the cores busy; they do not count, but share caches and memory.

The operators write to other memory than they read, as STREAM's copy and triad do: these are what the bandwidth is aimed
at. A triad that overwrites what it reads is faster, since its stores fetch nothing. It is there to be known, and the
column `of bandwidth` has the share of the best of the three.

![How many times better each row is]({NEIGHBOURS_PICTURE.as_posix()})

{table(neighbours["rows"])}

Bytes per second count the bytes that must move where nothing fits into the caches: 24 an element of affine shift, 32 of
gate, shift and fuse, 32 a feature of sums along edges, 8 a pixel of local soft-argmax, 24 a pixel of the focal loss,
28 a coordinate of the structure loss. `benchmarks/neighbours.py` says which. The load average was {loads[2][0]} before
and {loads[2][1]} after.

## The machines

Losses and optimizer steps:

{_machine(report)}

Operators of the neighbours:

{_machine(neighbours)}
""",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
