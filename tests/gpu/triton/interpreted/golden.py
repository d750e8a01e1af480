"""Guards the authors' trajectories through the prompt encoder, losses and optimizers on Triton."""

import pytest
import torch

from tests.golden.methods import COCOOP, check_cocoop
from tests.golden.test_prompt import CASES, Run, check_trajectory

IN_MAKE_TEST = ("unified_sgd", "cocoop_random_b1")  # the interpreter takes half a minute for the others


def slow_but_for_two(names):
    return [pytest.param(name, marks=() if name in IN_MAKE_TEST else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("case", slow_but_for_two(CASES))
def test_prograd(case):
    check_trajectory(Run(case, torch.float64))


@pytest.mark.parametrize("name", slow_but_for_two(COCOOP))
def test_cocoop(name):
    check_cocoop(name)
