"""The operators of the neighbours against their formulas, operator by operator of PyTorch and through torch.compile.

`python -m benchmarks.neighbours` prints the table and writes benchmarks/results/*-neighbours.json. One process, sides
in turn, medians.
"""

import argparse
import math
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import affine_shift, gate_shift_fuse, landmarks
from benchmarks.compare import Group, Sizes, publish, report_of, time_of
from benchmarks.measure import IN_PLACE, OUT_OF_PLACE, Side, load

FASTER_THAN_FORMULA, FASTER_THAN_COMPILED, LEAST_SHARE = 3.0, 1.0, 0.7
ALONE = "kernel within the caches"


@dataclass(frozen=True)
class Case:
    """An operator on two sizes.

    Attributes:
        work: what all sides do.
        sides: by name, for a size: this library's, the formula's, the compiled formula's.
        least: a size that leaves nothing but the call itself.
        sizes: in the caches and beyond them.
        elements: how many a size has, of whatever `moved` counts.
        moved: bytes that must move for an element where nothing fits into the caches. What formulas and autograd move
            is more.
        alone: where arithmetic takes the time: the forward's kernel on memory that stays in the caches, and how many
            elements it has.
    """

    work: str
    sides: dict[str, Callable[[Any], Side]]
    least: Any
    sizes: tuple[Any, Any]
    elements: Callable[[Any], int]
    moved: int
    alone: tuple[Callable[[], Side], int] | None = None


CLIPS, GATED_CLIPS = ((2, 192, 8, 14, 14), (16, 192, 8, 28, 28)), ((2, 8, 64, 14, 14), (4, 8, 256, 56, 56))
FACES, LANDMARKS = (2, 512), (64, 2**16)
MAPS, MASKS = (landmarks.NODES, 32 * landmarks.NODES), (1, 64)


def _pixels(masks: int) -> int:
    return masks * 448 * 448


CASES = [  # forward with backward
    # read x and bias, write the result; read gradient and x, write that of x
    Case("affine shift", affine_shift.WITH_GRADIENT, (1, 8, 1, 1, 1), CLIPS, math.prod, 24),
    # two reads of the clip, one write; both passes read gradient and clip, the second writes that of the clip
    Case("gate, shift and fuse", gate_shift_fuse.WITH_GRADIENT, (1, 1, 8, 1, 1), GATED_CLIPS, math.prod, 32),
    # of a node's feature: read own and other, write the sum; read gradient, own and other, write both gradients
    Case("sums along edges", landmarks.EDGE_SUMS, 0, FACES, lambda faces: faces * 98 * 128, 32),
    # of a pixel: read it, write the gradient
    Case("local soft-argmax", landmarks.SOFT_ARGMAX, 0, MAPS, lambda maps: maps * 64 * 64, 8),
    # of a pixel: read logit and label, write the cotangent; multiply it by the gradient of the mean
    Case("normalised focal loss", landmarks.FOCAL, 0, MASKS, _pixels, 24, landmarks.FOCAL_ALONE),
    Case("normalised focal loss, max_mult 2", landmarks.CUT_FOCAL, 0, MASKS, _pixels, 24, landmarks.CUT_FOCAL_ALONE),
    # of a coordinate: read both, write two cotangents; add them up
    Case(
        "structure loss", landmarks.STRUCTURE, 0, LANDMARKS, lambda faces: faces * 98 * 2, 28, landmarks.STRUCTURE_ALONE
    ),
]


def _of_system(side: Side) -> tuple[float, int]:
    """Seconds that the system takes for one call, and new pages that the call gets."""
    calls = 5  # its clock is coarse
    side()
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(calls):
        side()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return (after.ru_stime - before.ru_stime) / calls, (after.ru_minflt - before.ru_minflt) // calls


def measured(case: Case, sizes: Sizes, beyond: bool) -> Group:
    """An operator on one of its sizes."""
    size = case.sizes[beyond]
    ours, formula, compiled = case.sides
    sides = {name: make(size) for name, make in case.sides.items()}
    system, pages = _of_system(sides[ours])
    call = f"{ours}, {case.least}"
    if not beyond:
        sides[call] = case.sides[ours](case.least)
    elif case.alone:
        sides[ALONE] = case.alone[0]()
    group = Group(f"{case.work}, {size}", sides, sizes, stream=beyond, slow=beyond)
    moved = case.moved * case.elements(size)
    if group.bandwidth is None:
        bound = f"a call on nothing takes {time_of(group.seconds(call))} of {time_of(group.seconds(ours))}"
    else:
        of_memory, all_of_it = moved / group.rate(OUT_OF_PLACE), group.seconds(ours)
        rest = time_of(max(all_of_it - of_memory - system, 0.0))
        bound = f"of {time_of(all_of_it)} memory alone takes {time_of(of_memory)}, the system {time_of(system)} for "
        bound += f"{pages} new pages, arithmetic and what is moved more than once {rest}"
        if case.alone:
            in_caches = group.seconds(ALONE) * case.elements(size) / case.alone[1]
            bound += f"; the forward's kernel within the caches takes {time_of(in_caches)} for as many elements"
    group.faster(ours, formula, FASTER_THAN_FORMULA, moved, bound)
    group.faster(ours, compiled, FASTER_THAN_COMPILED, moved, bound)
    if beyond:
        group.of_bandwidth(ours, moved, OUT_OF_PLACE, LEAST_SHARE, bound)
        group.of_bandwidth(ours, moved, [IN_PLACE])
    return group


def compare(sizes: Sizes, cases: Sequence[Case]) -> dict[str, Any]:
    """Measure everything: date, machine, load average, rows and timings, ready for JSON."""
    before = load()
    return report_of([measured(case, sizes, beyond) for case in cases for beyond in (False, True)], before)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Measure the operators of the neighbours, print the table, write it.")
    parser.add_argument("--rounds", type=int, default=Sizes.slow_rounds, help="samples of each side")
    parser.add_argument("--patience", type=float, default=0.0, help="seconds for each group to find quiet rounds in")
    parser.add_argument("--only", default="", help="part of the name of the work")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the JSON")
    options = parser.parse_args()
    cases = [case for case in CASES if options.only in case.work]
    sizes = Sizes(rounds=options.rounds, slow_rounds=options.rounds, stream=2**24, patience=options.patience)
    publish(compare(sizes, cases), options.out, "-neighbours")


if __name__ == "__main__":
    main()
