"""The optimizers on Triton, against those on the backends of the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from prograd_fast.backends import triton as triton_backend
from prograd_fast.ops.common import SCOPES
from tests.ops.support import BACKENDS, running_on
from tests.optim import support as support

OTHERS = {name: partial(running_on, name) for name in BACKENDS}


@contextmanager
def triton_on_the_cpu() -> Iterator[None]:
    with running_on("reference"):  # the C++ kernels would be in the way where they are built
        unregister = triton_backend.register("CPU")
        try:
            yield
        finally:
            unregister()


others = pytest.mark.parametrize("other", OTHERS)
optimizers = pytest.mark.parametrize("name", support.OPTIMIZERS)


@others
@pytest.mark.parametrize("scope", SCOPES)
@optimizers
def test_same_trajectory(other, name, scope):
    support.check_same_trajectory(triton_on_the_cpu, OTHERS[other], name, scope)


@others
@optimizers
def test_checkpoints_go_from_backend_to_backend(other, name):
    support.check_exchange(triton_on_the_cpu, OTHERS[other], name)
    support.check_exchange(OTHERS[other], triton_on_the_cpu, name)


@optimizers
def test_a_checkpoint_of_its_own(name):
    support.check_exchange(triton_on_the_cpu, triton_on_the_cpu, name)


@optimizers
def test_another_backend_under_way(name):
    support.check_change_under_way(triton_on_the_cpu, OTHERS[BACKENDS[-1]], name)


@optimizers
def test_checkpoints_go_to_torch_and_back(name):
    support.check_exchange_with_torch(triton_on_the_cpu, name)


@optimizers
def test_views(name):
    support.check_views(triton_on_the_cpu, name, "row")  # units are parts of views


@optimizers
def test_expanded_gradients(name):
    support.check_expanded(triton_on_the_cpu, name)
