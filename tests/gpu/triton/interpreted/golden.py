"""Guards the authors' trajectories through the prompt encoder, losses and optimizers on Triton."""

import pytest
import torch

from tests.golden.methods import COCOOP, check_cocoop
from tests.golden.trajectories import CASES, Run, check_trajectory
from tests.slow import slow_but_for


# the interpreter takes up to half a minute for each
@pytest.mark.parametrize("case", slow_but_for([], CASES))
def test_prograd(case):
    check_trajectory(Run(case, torch.float64))


@pytest.mark.parametrize("name", slow_but_for([], COCOOP))
def test_cocoop(name):
    check_cocoop(name)
