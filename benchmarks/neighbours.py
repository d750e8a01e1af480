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
from benchmarks.measure import Side, load

FASTER_THAN_FORMULA, FASTER_THAN_COMPILED, LEAST_SHARE = 3.0, 1.0, 0.7


@dataclass(frozen=True)
class Case:
    """An operator on two sizes.

    Attributes:
        work: what all sides do.
        sides: by name, for a size: this library's, the formula's, the compiled formula's.
        sizes: in the caches and beyond them.
        elements: how many a size has, of whatever `moved` counts.
        moved: bytes that must move for an element where nothing fits into the caches. What formulas and autograd move
            is more.
    """

    work: str
    sides: dict[str, Callable[[Any], Side]]
    sizes: tuple[Any, Any]
    elements: Callable[[Any], int]
    moved: int


CLIPS, GATED_CLIPS = ((2, 192, 8, 14, 14), (16, 192, 8, 28, 28)), ((2, 8, 64, 14, 14), (4, 8, 256, 56, 56))
FACES, LANDMARKS = (2, 1024), (64, 2**17)
MAPS, MASKS = (landmarks.NODES, 64 * landmarks.NODES), (1, 128)
CASES = [
    # read x and bias, write the result; and read gradient and x, write that of x
    Case("affine shift", affine_shift.FORWARD, CLIPS, math.prod, 12),
    Case("affine shift with gradient", affine_shift.WITH_GRADIENT, CLIPS, math.prod, 24),
    # two reads of the clip, one write; and both passes read gradient and clip, the second writes that of the clip
    Case("gate, shift and fuse", gate_shift_fuse.FORWARD, GATED_CLIPS, math.prod, 12),
    Case("gate, shift and fuse with gradient", gate_shift_fuse.WITH_GRADIENT, GATED_CLIPS, math.prod, 32),
    # read own and other, write the sum; read gradient, own and other, write both gradients
    Case("sums along edges with gradient", landmarks.EDGE_SUMS, FACES, lambda faces: faces * 98 * 128, 32),
    # read twice, write the gradient
    Case("local soft-argmax with gradient", landmarks.SOFT_ARGMAX, MAPS, lambda maps: maps * 64 * 64, 12),
    # read logits and labels, write the cotangents; multiply them by the gradient of the mean
    Case("normalised focal loss with gradient", landmarks.FOCAL, MASKS, lambda masks: masks * 448 * 448, 24),
    Case("normalised focal loss, max_mult 2, with gradient", landmarks.CUT_FOCAL, MASKS, lambda m: m * 448 * 448, 24),
    # read both, write two cotangents; add them up
    Case("structure loss with gradient", landmarks.STRUCTURE, LANDMARKS, lambda faces: faces * 98 * 2, 28),
]


def _of_system(side: Side) -> tuple[float, int]:
    """Seconds that the system takes for one call, and how many pages it gives to it: ten calls, for its clock is coarse."""
    calls = 10
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(calls):
        side()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return (after.ru_stime - before.ru_stime) / calls, (after.ru_minflt - before.ru_minflt) // calls


def measured(case: Case, sizes: Sizes, beyond: bool) -> Group:
    """An operator on one of its sizes."""
    size = case.sizes[beyond]
    elements = case.elements(size)
    ours, formula, compiled = case.sides
    sides = {name: make(size) for name, make in case.sides.items()}
    system, pages = _of_system(sides[ours])
    few, in_caches = case.sizes[0], f"{ours}, in the caches"
    if beyond:
        sides[in_caches] = case.sides[ours](few)
    work = f"{case.work}, {'beyond' if beyond else 'in'} the caches: {size}"
    group = Group(work, sides, sizes, stream=beyond, slow=beyond)
    moved = case.moved * elements
    bound = f"{pages} new pages take {time_of(system)} of the system"
    if beyond:
        scaled = group.seconds(in_caches) * elements / case.elements(few)
        bound = f"as many elements that stay in the caches take {time_of(scaled)}, memory alone {time_of(moved / (group.bandwidth or math.nan))}, {bound}"
    group.faster(ours, formula, FASTER_THAN_FORMULA, moved, bound)
    group.faster(ours, compiled, FASTER_THAN_COMPILED, moved, bound)
    if beyond:
        group.of_bandwidth(ours, moved, LEAST_SHARE, bound)
    return group


def compare(sizes: Sizes, cases: Sequence[Case]) -> dict[str, Any]:
    """Measure everything: date, machine, load average, rows and timings, ready for JSON."""
    before = load()
    return report_of([measured(case, sizes, beyond) for case in cases for beyond in (False, True)], before)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Measure the operators of the neighbours, print the table, write it.")
    parser.add_argument("--rounds", type=int, default=Sizes.rounds, help="samples of each side in the caches")
    parser.add_argument("--patience", type=float, default=0.0, help="seconds for each group to find quiet rounds in")
    parser.add_argument("--only", default="", help="part of the name of the work")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the JSON")
    options = parser.parse_args()
    cases = [case for case in CASES if options.only in case.work]
    publish(compare(Sizes(rounds=options.rounds, patience=options.patience), cases), options.out, "-neighbours")


if __name__ == "__main__":
    main()
