"""What a kernel does outside of a tensor is a failure that says which tensor and how far off; it ends no process."""

from ctypes import c_bool, c_int64, c_void_p

import pytest
import torch
from torch import Tensor

from tests.gpu.simt.build import compiler
from tests.gpu.simt.guarded import PAGE, Guarded
from tests.gpu.simt.library import Library, SimtError, pointer

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler: the CUDA kernels cannot run on the CPU")
above = pytest.mark.parametrize("page", ["above"], indirect=True)


class Touch(Library):
    """A kernel that reads or writes one element."""

    stem = "touch"

    def touch(self, values: Tensor, index: int, write: bool = False) -> None:
        self.call("touch", pointer(values), c_int64(index), c_bool(write))


@pytest.fixture(scope="module")
def simt() -> Touch:
    return Touch()


# elements: less than 16 bytes; a multiple; several pages
@pytest.mark.parametrize("size", [3, 8, 2500])
def test_elements_of_a_tensor_may_be_touched(simt: Touch, size: int) -> None:
    for shift in range(4):
        guarded = Guarded(shift)
        values = guarded(torch.arange(size).float())
        assert values.data_ptr() % 16 == 4 * shift
        assert torch.equal(values, torch.arange(size).float())
        for index in (0, size - 1):
            simt.touch(values, index, write=True)
        guarded.check()


@above
def test_a_tensor_ends_at_the_page_behind_it(simt: Touch) -> None:
    guarded = Guarded()
    values = guarded(torch.zeros(3, 4))
    for write in (False, True):
        verb = "wrote" if write else "read"
        with pytest.raises(SimtError, match=rf"a kernel {verb} 8 bytes outside of tensor 0, float32 \(3, 4\), be"):
            simt.touch(values, 14, write)
    simt.touch(values, 11)  # the fault before has left nothing behind


@pytest.mark.parametrize("page", ["below"], indirect=True)
def test_a_tensor_begins_at_the_page_before_it(simt: Touch) -> None:
    guarded = Guarded()
    _, values = guarded(torch.zeros(5)), guarded(torch.zeros(()))
    with pytest.raises(SimtError, match=r"read 4 bytes outside of tensor 1, float32 \(\), before it"):
        simt.touch(values, -1)


def test_an_input_cannot_be_written(simt: Touch) -> None:
    guarded = Guarded()
    values = guarded.input(torch.zeros(4))
    simt.touch(values, 3)
    with pytest.raises(SimtError, match="wrote 12 bytes into tensor 0"):
        simt.touch(values, 3, write=True)


@above
def test_a_write_that_no_page_stops_is_found(simt: Touch) -> None:
    guarded = Guarded()
    simt.touch(guarded(torch.zeros(3)), 3, write=True)  # the rest of 16 bytes
    with pytest.raises(AssertionError, match="write outside of tensor 0"):
        guarded.check()


@above
def test_the_host_must_not_read_from_a_device(simt: Touch) -> None:
    guarded = Guarded()
    values = guarded(torch.zeros(PAGE))
    with pytest.raises(SimtError, match=r"the host read 0 bytes outside of tensor 0, .* behind its end"):
        simt.call("touch_on_the_host", c_void_p(values.data_ptr() + 4 * PAGE))


def test_an_empty_tensor_has_an_address(simt: Touch) -> None:
    values = Guarded()(torch.zeros(0, 3))
    assert values.shape == (0, 3)
    with pytest.raises(SimtError, match="read"):
        simt.touch(values, 0)
