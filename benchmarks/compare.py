"""The table of what must be fast: `python -m benchmarks.compare` prints it and writes benchmarks/results/*.json.

One process; the sides of a row in turn; medians. Memory is measured in a process for each side. Every ratio is such
that larger is better. Bytes are those that must move once everything is beyond the caches:

    AdamW                    28 per element: read θ, a, m, v; write θ, m, v
    projection and AdamW     40: a and b for the conflict test, then a, b, θ, m, v; write θ, m, v
    dual loss                16: read both logits, write both cotangents
"""

import argparse
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.losses import DUAL_LOSSES, LINEAR_DUAL_LOSSES, products_alone, two_backwards_of_a_sum
from benchmarks.measure import STREAMS, Side, interleaved, load, machine, streams
from benchmarks.peak_memory import peak_memory
from benchmarks.steps import CONTEXT, LARGE, MANY, STEPS, Shapes, elements

ADAMW_BYTES, STEP_BYTES, DUAL_LOSS_BYTES = 28, 40, 16
SLOW_COMPILE = "torch.compile"  # of 200 tensors: minutes


@dataclass(frozen=True)
class Sizes:
    """The sizes that the table is measured on."""

    context: Shapes = tuple(CONTEXT)
    large: Shapes = tuple(LARGE)
    many: Shapes = tuple(MANY)
    logits: Sequence[tuple[int, int]] = ((32, 1000), (1024, 21841))
    linear: tuple[int, int, int] = (4096, 21841, 512)
    stream: int = 2**25
    rounds: int = 31
    slow_rounds: int = 7
    patience: float = 0.0


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        work: what is done.
        ours: the side of this library.
        theirs: the side it is compared with.
        unit: of the two figures, "s", "GB/s", "GFLOP/s" or "MB".
        our_figure: median of ours.
        their_figure: median of theirs.
        ratio: how many times better ours is.
        target: the least ratio wanted; None for a row that is there to be known.
        share: of the bandwidth measured in the same rounds that ours reaches; None where the data stay in a cache.
        noise: interquartile range over the median, the larger of the two sides; None for memory.
        others: cores that other processes kept busy meanwhile; figures of threads mean little above 0.1.
        bound_by: for a target missed, what takes the time, from measurements in the same rounds.
    """

    work: str
    ours: str
    theirs: str
    unit: str
    our_figure: float
    their_figure: float
    ratio: float
    target: float | None
    share: float | None = None
    noise: float | None = None
    others: float | None = None
    bound_by: str = ""

    @property
    def missed(self) -> bool:
        """Whether there is a target, and it is not reached."""
        return self.target is not None and self.ratio < self.target


class Group:
    """Sides that are timed together, and the rows that follow from them.

    Args:
        work: what all sides do.
        sides: by name.
        sizes: rounds and patience are read from it.
        stream: whether the bandwidth is measured in the same rounds.
        slow: whether a call takes seconds.
    """

    def __init__(
        self, work: str, sides: dict[str, Side], sizes: Sizes, *, stream: bool = False, slow: bool = False
    ) -> None:
        self.work = work
        bandwidth = streams(sizes.stream) if stream else {}
        rounds = sizes.slow_rounds if slow else sizes.rounds
        sides = sides | {name: side for name, (side, _) in bandwidth.items()}
        self.timings = interleaved(sides, rounds, patience=sizes.patience)
        self.rates = {name: n / self.timings[name].median for name, (_, n) in bandwidth.items()}
        self.bandwidth = max(self.rates.values(), default=None)
        self.rows: list[Row] = []

    def seconds(self, side: str) -> float:
        """Median of a side."""
        return self.timings[side].median

    def rate(self, streams: Sequence[str]) -> float:
        """Bytes per second of the best of these streams."""
        return max(self.rates[name] for name in streams)

    def share(self, side: str, moved: int) -> float | None:
        """The share of the bandwidth, for a side that moves so many bytes."""
        return None if self.bandwidth is None else moved / self.seconds(side) / self.bandwidth

    def faster(self, ours: str, theirs: str, target: float | None = None, moved: int = 0, bound: str = "") -> None:
        """A row: how many times faster."""
        mine, other = self.seconds(ours), self.seconds(theirs)
        share = self.share(ours, moved)
        self._add(Row(self.work, ours, theirs, "s", mine, other, other / mine, target, share), bound)

    def more_bytes(self, ours: str, moved: int, theirs: str, their_moved: int, target: float, bound: str) -> None:
        """A row: bytes per second against those of another side."""
        mine, other = moved / self.seconds(ours), their_moved / self.seconds(theirs)
        share = self.share(ours, moved)
        self._add(Row(self.work, ours, theirs, "GB/s", mine / 1e9, other / 1e9, mine / other, target, share), bound)

    def more_arithmetic(self, ours: str, theirs: str, operations: int) -> None:
        """A row: operations per second against those of another side that does the same ones."""
        mine, other = (operations / self.seconds(side) / 1e9 for side in (ours, theirs))
        self._add(Row(self.work, ours, theirs, "GFLOP/s", mine, other, mine / other, None), "")

    def of_bandwidth(
        self, ours: str, moved: int, streams: Sequence[str], target: float | None = None, bound: str = ""
    ) -> None:
        """A row: bytes per second against the best of these streams."""
        mine, other = moved / self.seconds(ours), self.rate(streams)
        name = streams[0] if len(streams) == 1 else f"best of {', '.join(streams)}"
        share = self.share(ours, moved)
        self._add(Row(self.work, ours, name, "GB/s", mine / 1e9, other / 1e9, mine / other, target, share), bound)

    def _add(self, row: Row, bound: str) -> None:
        timings = [self.timings[side] for side in (row.ours, row.theirs) if side in self.timings]
        noise, others = (max(values) for values in zip(*((t.noise, t.others) for t in timings), strict=True))
        known = {"noise": noise, "others": others, "bound_by": bound if row.missed else ""}
        self.rows.append(replace(row, **known))


def _built(makers: dict[str, Callable[..., Side]], *size: Any, without: Sequence[str] = ()) -> dict[str, Side]:
    return {name: make(*size) for name, make in makers.items() if name not in without}


# ---- the groups

OURS, COMPOSABLE = "ProGradAdamW, one call", "ProGradAdamW(fused), backward and step"
KERNEL, FLOOR = "project_adamw_ operator", "AdamW(fused) alone"


def _python_share(group: Group) -> str:
    kernel, step = group.seconds(KERNEL), group.seconds(OURS)
    return f"the operator takes {time_of(kernel)} of the step's {time_of(step)}, Python around it the rest"


def context_step(sizes: Sizes) -> Group:
    """One small context: everything in a cache, one launch."""
    sides = _built(STEPS, sizes.context)
    sides["authors + AdamW, no conflict"] = STEPS["authors + AdamW"](sizes.context, conflict=False)
    group = Group("step, 16x512", sides, sizes)
    bound = _python_share(group)
    group.faster(OURS, "authors + AdamW", 3.5, bound=bound)
    group.faster(OURS, FLOOR, 1.0, bound=bound)
    group.faster(COMPOSABLE, "authors + AdamW", 1.7, bound=bound)
    group.faster(COMPOSABLE, FLOOR, 1 / 1.4, bound=bound)
    for other in ("authors + AdamW, no conflict", "authors + AdamW(fused)", "foreach + AdamW(foreach)", SLOW_COMPILE):
        group.faster(OURS, other)
    return group


def large_step(sizes: Sizes) -> Group:
    """One tensor beyond the caches."""
    n = elements(sizes.large)
    group = Group(f"step, {n:.0e} elements".replace("e+0", "e"), _built(STEPS, sizes.large), sizes, stream=True)
    moved = STEP_BYTES * n
    bound = f"memory: {_percent(group.share(OURS, moved))} of the bandwidth; {_python_share(group)}"
    group.faster(OURS, "authors + AdamW(fused)", 3.0, moved, bound)
    group.more_bytes(OURS, moved, FLOOR, ADAMW_BYTES * n, 0.9, bound)
    group.faster(COMPOSABLE, OURS, 1 / 1.3, bound=bound)
    for other in ("authors + AdamW", "foreach + AdamW(foreach)", SLOW_COMPILE):
        group.faster(OURS, other, moved=moved)
    return group


def many_step(sizes: Sizes) -> Group:
    """Many tensors of mixed sizes."""
    sides = _built(STEPS, sizes.many, without=[SLOW_COMPILE])
    group = Group(f"step, {len(sizes.many)} tensors", sides, sizes, stream=True)
    moved = STEP_BYTES * elements(sizes.many)
    bound = f"{_python_share(group)}; the operator moves {_percent(group.share(KERNEL, moved))} of the bandwidth"
    bound += f", {FLOOR} takes {time_of(group.seconds(FLOOR))}"
    group.faster(OURS, "authors + AdamW", 5.0, moved, bound)
    for other in ("authors + AdamW(fused)", "foreach + AdamW(foreach)", FLOOR):
        group.faster(OURS, other, moved=moved)
    return group


def dual_loss(sizes: Sizes, rows: int, classes: int, target: float, share: float | None) -> Group:
    """Both losses and both cotangents on logits; `share` is the least share of the bandwidth wanted."""
    kernel, out, authors = "dual_loss operator", "dual_loss_out operator", "authors, two autograd.grad"
    loop, sums = "DualLoss + two autograd.grad", "two autograd.grad of a sum"
    new = f"{loop}, new memory"
    few = max(4, rows // 32)
    in_cache = f"{out}, {few} rows"
    sides = _built(DUAL_LOSSES, rows, classes) | {in_cache: DUAL_LOSSES[out](few, classes)}
    sides |= {sums: two_backwards_of_a_sum(rows, classes)}
    group = Group(f"dual loss, {rows}x{classes}", sides, sizes, stream=share is not None)
    moved = DUAL_LOSS_BYTES * rows * classes
    bound = f"{time_of(group.seconds(out))} into memory that is there, {time_of(group.seconds(new))} with new memory; "
    if group.bandwidth is None:  # so small that the call itself counts
        bound += f"{few} rows alone take {time_of(group.seconds(in_cache))}"
    else:
        in_caches = group.seconds(in_cache) * rows / few
        bound += f"{few} rows that stay in the caches: {time_of(in_caches)} for as many elements; "
        bound += f"memory alone: {time_of(moved / group.bandwidth)}"
    group.faster(kernel, authors, target, moved, bound)
    group.faster(kernel, "torch.compile", 1.0, moved, bound)
    if share is not None:
        group.of_bandwidth(out, moved, STREAMS, share, bound)
        group.of_bandwidth(kernel, moved, STREAMS, share, bound)
    calls = f"{sums} take {time_of(group.seconds(sums))}, {out} {time_of(group.seconds(out))}"
    group.faster(loop, authors, 4.0, moved, calls)
    group.faster(loop, out, None if share is None else 1 / 1.3, moved, calls)
    group.faster(loop, new, moved=moved)
    return group


def linear_dual_loss(sizes: Sizes) -> Group:
    """From features to cotangents on class features, with and without logits in memory."""
    rows, classes, width = sizes.linear
    ours, theirs = LINEAR_DUAL_LOSSES
    work = f"linear dual loss, B={rows} C={classes} D={width}"
    alone = "the matrix products by torch"
    sides = _built(LINEAR_DUAL_LOSSES, *sizes.linear) | {alone: products_alone(*sizes.linear)}
    group = Group(work, sides, sizes, slow=True)
    products = time_of(group.seconds(alone))
    group.faster(ours, theirs, 1 / 1.2, bound=f"the matrix products: torch's alone take {products}")
    group.more_arithmetic(ours, alone, 8 * rows * classes * width)
    table = "benchmarks.losses:LINEAR_DUAL_LOSSES"
    mine, other = (peak_memory(f"{table}:{side}", (8, 64, width), sizes.linear) for side in (ours, theirs))
    results = 4 * 2 * classes * width  # both cotangents, which both sides return
    for name, less, target in (("beyond inputs and results", results, 15.0), ("beyond inputs", 0, None)):
        figures = (mine - less) / 1e6, (other - less) / 1e6
        row = Row(f"{work}, peak memory {name}", ours, theirs, "MB", *figures, figures[1] / figures[0], target)
        bound = f"blocks of logits and what the matrix products keep, {figures[0]:.0f} MB"
        group.rows.append(replace(row, bound_by=bound if row.missed else ""))
    return group


def report_of(groups: Sequence[Group], load_before: list[float]) -> dict[str, Any]:
    """Date, machine, load average, rows and the timings of all sides, ready for JSON."""
    return {
        "date": date.today().isoformat(),
        "machine": machine(),
        "load": {"start": load_before, "end": load()},
        "rows": [asdict(row) | {"missed": row.missed} for group in groups for row in group.rows],
        "timings": {g.work: {side: asdict(timing) for side, timing in g.timings.items()} for g in groups},
    }


def compare(sizes: Sizes) -> dict[str, Any]:
    """Measure everything.

    Args:
        sizes: what to measure on.

    Returns:
        Date, machine, load average, rows and the timings of all sides, ready for JSON.
    """
    before = load()
    groups = [context_step(sizes), large_step(sizes), many_step(sizes)]
    for (rows, classes), target, share in zip(sizes.logits, (6.0, 8.0), (None, 0.75), strict=True):
        groups.append(dual_loss(sizes, rows, classes, target, share))
    groups.append(linear_dual_loss(sizes))
    return report_of(groups, before)


# ---- output


def time_of(seconds: float) -> str:
    """A time for a reader."""
    for unit, factor in (("s", 1), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def _figure(value: float, unit: str) -> str:
    return time_of(value) if unit == "s" else f"{value:.3g} {unit}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def table(rows: Sequence[dict[str, Any]], share: str = "of bandwidth") -> str:
    """The rows in Markdown; `share` heads the column of shares."""
    head = ("work", "ours", "theirs", "ours", "theirs", "ratio", "at least", share, "noise", "others", "")
    lines = [head, ("---",) * len(head)]
    for row in rows:
        figures = [_figure(row[key], row["unit"]) for key in ("our_figure", "their_figure")]
        target = "" if row["target"] is None else f"{row['target']:.2f}"
        verdict = f"MISSED: {row['bound_by']}" if row["missed"] else ""
        others = "" if row["others"] is None else f"{row['others']:.2f} cores"
        cells = (f"{row['ratio']:.2f}", target, _percent(row["share"]), _percent(row["noise"]), others, verdict)
        lines.append((row["work"], row["ours"], row["theirs"], *figures, *cells))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(report: dict[str, Any], folder: Path, of: str = "") -> Path:
    """Write a report to FOLDER/<date>-<cpu><of>.json."""
    name = re.sub(r"[^a-z0-9]+", "-", report["machine"].get("gpu", report["machine"]["cpu"]).lower()).strip("-")
    path = folder / f"{report['date']}-{name}{of}.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    return path


def publish(report: dict[str, Any], out: Path, of: str = "", share: str = "of bandwidth") -> None:
    """Print a report and write it."""
    print(table(report["rows"], share))
    print(f"load average {report['load']['start']} before, {report['load']['end']} after")
    print(write(report, out, of))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Measure the table of what must be fast, print and write it.")
    parser.add_argument("--rounds", type=int, default=Sizes.rounds, help="samples of each side")
    parser.add_argument("--patience", type=float, default=0.0, help="seconds for each group to find quiet rounds in")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the JSON")
    options = parser.parse_args()
    publish(compare(Sizes(rounds=options.rounds, patience=options.patience)), options.out)


if __name__ == "__main__":
    main()
