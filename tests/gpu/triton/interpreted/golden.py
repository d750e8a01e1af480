"""Guards the authors' trajectories through the prompt encoder, losses and optimizers on Triton."""

import pytest
import torch

from tests.golden.methods import COCOOP, check_cocoop
from tests.golden.test_prompt import CASES, Run, check_trajectory


@pytest.mark.parametrize("case", CASES)
def test_prograd(case):
    check_trajectory(Run(case, torch.float64))


@pytest.mark.parametrize("name", COCOOP)
def test_cocoop(name):
    check_cocoop(name)
