"""Guards the optimizers on the backends of the CPU: one trajectory, one checkpoint, whichever kernels run."""

import itertools
from functools import partial

import pytest
import torch

from prograd_fast.ops.common import SCOPES
from tests.ops.support import BACKENDS, running_on, threads
from tests.optim import support as support

RUNNING = {name: partial(running_on, name) for name in BACKENDS}
BEST = BACKENDS[-1]
PAIRS = sorted({(BEST, BEST), *itertools.combinations(BACKENDS, 2)})  # with itself: bit for bit
WAYS = sorted({*PAIRS, *((other, one) for one, other in PAIRS)})

backends = pytest.mark.parametrize("backend", BACKENDS)
pairs = pytest.mark.parametrize(("one", "other"), PAIRS)
ways = pytest.mark.parametrize(("one", "other"), WAYS)
scopes = pytest.mark.parametrize("scope", SCOPES)
optimizers = pytest.mark.parametrize("name", support.OPTIMIZERS)


@pairs
@scopes
@optimizers
def test_same_trajectory(one, other, name, scope):
    support.check_same_trajectory(RUNNING[one], RUNNING[other], name, scope)


@ways
@optimizers
def test_checkpoints_go_from_backend_to_backend(one, other, name):
    support.check_exchange(RUNNING[one], RUNNING[other], name)


@pairs
@optimizers
def test_another_backend_under_way(one, other, name):
    support.check_change_under_way(RUNNING[one], RUNNING[other], name)


@backends
@optimizers
def test_checkpoints_go_to_torch_and_back(backend, name):
    support.check_exchange_with_torch(RUNNING[backend], name)


@backends
@scopes
@optimizers
def test_views(backend, name, scope):
    support.check_views(RUNNING[backend], name, scope)


@backends
@optimizers
def test_expanded_gradients(backend, name):
    support.check_expanded(RUNNING[backend], name)


# more elements than one thread takes (65 536), in one tensor, in its rows, and in a list of which none has so many
LARGE = [
    [((140001,), torch.float32), ((7,), torch.float32)],
    [((3, 40001), torch.bfloat16), ((2, 5), torch.float64)],
    [((150, 101), torch.float32)] * 5,
]


@pytest.mark.parametrize(
    ("backend", "name", "tensors", "scope"),
    [
        *((BEST, "adamw", tensors, scope) for tensors in LARGE for scope in SCOPES),
        *((BEST, "nesterov", tensors, "row") for tensors in LARGE),
        *(("reference", "adamw", LARGE[0], scope) for scope in ("tensor", "row")),
    ],
)
def test_a_step_does_not_depend_on_the_number_of_threads(backend, name, tensors, scope):
    outcomes = []
    for count in (1, 2):
        params = support.parameters(tensors)
        opt = support.OPTIMIZERS[name](params, scope=scope)
        with RUNNING[backend](), threads(count):
            support.run(opt, params, range(4, 7))
        cosine = opt.conflict.cosine.nan_to_num()  # NaN where b happens to be below the noise floor
        outcomes.append([*support.results(opt, params), cosine])
        assert opt.conflict.conflicts.any()
    support.assert_same(*outcomes, bitwise=True)
