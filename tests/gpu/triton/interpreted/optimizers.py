"""Guards the optimizers on Triton, against those on the backends of the CPU."""

from functools import partial

import pytest

from prograd_fast.ops.common import SCOPES
from tests.gpu.triton.support import running_on_triton
from tests.ops.support import BACKENDS, running_on
from tests.optim import support
from tests.slow import slow_but_for


@pytest.fixture(scope="module")
def triton_on_the_cpu() -> None:
    """In the place of the one that holds for whole tests: these go from backend to backend."""


OTHERS = {name: partial(running_on, name) for name in BACKENDS}


# tests/optim compares the backends of the CPU with each other
others = pytest.mark.parametrize("other", slow_but_for(["reference"], BACKENDS))
# one AdamW and one SGD, with their rarer options
optimizers = pytest.mark.parametrize("name", slow_but_for(["amsgrad, maximize", "sgd"], support.OPTIMIZERS))


@others
@pytest.mark.parametrize("scope", SCOPES)
@optimizers
def test_same_trajectory(other, name, scope):
    support.check_same_trajectory(running_on_triton, OTHERS[other], name, scope)


@others
@optimizers
def test_checkpoints_go_from_backend_to_backend(other, name):
    support.check_exchange(running_on_triton, OTHERS[other], name)
    support.check_exchange(OTHERS[other], running_on_triton, name)


@optimizers
def test_a_checkpoint_of_its_own(name):
    support.check_exchange(running_on_triton, running_on_triton, name)


@optimizers
def test_another_backend_under_way(name):
    support.check_change_under_way(running_on_triton, OTHERS[BACKENDS[-1]], name)


@optimizers
def test_checkpoints_go_to_torch_and_back(name):
    support.check_exchange_with_torch(running_on_triton, name)


@optimizers
def test_views(name):
    support.check_views(running_on_triton, name, "row")  # units are parts of views


@optimizers
def test_expanded_gradients(name):
    support.check_expanded(running_on_triton, name)
