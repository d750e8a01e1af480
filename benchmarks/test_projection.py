"""`gram` and `project` by themselves.

Bytes: 8 per element for `gram` (read a, b); 20 for `project` (a, b for the conflict test, again a, b, write g).
"""

import pytest
import torch

import prograd_fast as pf
from benchmarks import authors
from benchmarks.steps import CONTEXT, LARGE, MANY, closed_project, elements, foreach_project, gradients

CASES = {"16x512": CONTEXT, "10^7": LARGE, "200 tensors": MANY}


def foreach_gram(task, general):
    products = (torch._foreach_mul(task, general), torch._foreach_mul(task, task), torch._foreach_mul(general, general))
    return [torch.stack([one.sum() for one in product]) for product in products]


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
