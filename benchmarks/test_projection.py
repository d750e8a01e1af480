"""`gram` and `project` by themselves, and the operator of the latter.

Bytes: 8 per element for `gram` (read a, b); 20 for `project` (a, b for the conflict test, again a, b, write g), 12 of
them with given coefficients. A tensor that fits into the caches is read from memory once.
"""

import pytest
import torch

import prograd_fast as pf
from benchmarks import authors
from benchmarks.measure import Side
from benchmarks.steps import CONTEXT, LARGE, MANY, Gradients, closed_project, elements, foreach_project, gradients

CASES = {"16x512": CONTEXT, "10^7": LARGE, "200 tensors": MANY}


def foreach_gram(task, general):
    products = (torch._foreach_mul(task, general), torch._foreach_mul(task, task), torch._foreach_mul(general, general))
    return [torch.stack([one.sum() for one in product]) for product in products]


def project_out(task: Gradients, general: Gradients, in_place: bool = False, given: bool = False) -> Side:
    """The operator, with all lists made beforehand; λ is so small that the conflict stays in place."""
    projected = task if in_place else [torch.empty_like(a) for a in task]
    entries = task[0].new_empty(len(task), 3)
    coefficients = torch.tensor([[1.0, 0.3]], device=entries.device).repeat(len(task), 1) if given else None
    return lambda: torch.ops.prograd_fast.project_out(
        task, general, coefficients, 1e-6, 0.0, 0, entries=entries, projected=projected
    )


GRAM = {"functional.gram": pf.functional.gram, "reference.gram": pf.reference.gram, "foreach": foreach_gram}
PROJECT = {
    "functional.project": pf.functional.project,
    "authors": authors.project,
    "foreach": foreach_project,
    "torch.compile": torch.compile(closed_project, dynamic=False),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("side", GRAM)
def test_gram(timed, case, side):
    both = gradients(CASES[case])
    timed(f"gram, {case}", lambda: GRAM[side](*both), 8 * elements(CASES[case]))


# 200 tensors compile for minutes
@pytest.mark.parametrize(
    ("case", "side"), [(c, s) for c in CASES for s in PROJECT if (c, s) != ("200 tensors", "torch.compile")]
)
def test_project(timed, case, side):
    both = gradients(CASES[case])
    timed(f"project, {case}", lambda: PROJECT[side](*both), 20 * elements(CASES[case]))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "options", [{}, {"in_place": True}, {"given": True}], ids=lambda options: "".join(options) or "measured"
)
def test_project_out(timed, case, options):
    moved = 12 if "given" in options else 20
    side = project_out(*gradients(CASES[case]), **options)
    timed(f"project_out, {case}", side, moved * elements(CASES[case]))
