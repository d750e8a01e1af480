"""Guards the memory of large cotangents on a CPU: used again by the next call, never while somebody holds it."""

import copy
import functools
import gc
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import prograd_fast as pf
from prograd_fast.backends import extension
from prograd_fast.ops.registry import SHORTCUTS
from tests.ops.support import normal

pytestmark = pytest.mark.skipif(extension.EXTENSION is None, reason="no C++ kernels here, so no memory is kept")

ROWS, CLASSES = 64, 2**15  # 16 MiB of float32 cotangents, the smallest that are kept
TEACHER = normal(ROWS, CLASSES, seed=1, dtype=torch.float32)
LABELS = torch.arange(ROWS)


@pytest.fixture(autouse=True)
def nothing_waits() -> Iterator[None]:
    gc.collect()
    SHORTCUTS["release_memory"]()
    yield
    gc.collect()
    SHORTCUTS["release_memory"]()


@functools.cache
def logits(seed: int) -> Tensor:
    return normal(ROWS, CLASSES, seed=seed, dtype=torch.float32)


def student(seed: int = 0, rows: int = ROWS, dtype: torch.dtype = torch.float32) -> Tensor:
    return logits(seed)[:rows].to(dtype, copy=True).requires_grad_()


def losses(z: Tensor) -> tuple[Tensor, Tensor]:
    rows = len(z)
    return pf.functional.dual_loss(z, TEACHER[:rows].to(z.dtype), LABELS[:rows])


def gradients(z: Tensor) -> tuple[Tensor, Tensor]:
    """Of a loss each, which are the cotangents themselves."""
    task, general = losses(z)
    (a,) = torch.autograd.grad(task, z, retain_graph=True)
    (b,) = torch.autograd.grad(general, z)
    return a, b


def place(z: Tensor) -> int:
    """Where the cotangents of a call are, once it is over and nobody holds them."""
    return gradients(z)[0].data_ptr()


def test_the_next_call_takes_the_same_memory() -> None:
    z = student()
    assert len({place(z) for _ in range(4)}) == 1
    task, general = pf.DualLoss()(z, TEACHER, LABELS)
    (a,) = torch.autograd.grad(task, z, retain_graph=True)
    assert a.data_ptr() == a.untyped_storage().data_ptr()
    first = a.data_ptr()
    del task, general, a
    assert place(z) == first


def test_gradients_that_are_kept_until_the_next_ones_are_there_take_turns() -> None:
    z, places = student(), []
    for _ in range(6):
        a, b = gradients(z)
        places.append(a.data_ptr())
    assert len(set(places)) == 2
    assert b.data_ptr() > a.data_ptr()


def test_a_result_and_its_gradient_both_come_back() -> None:
    x, places = torch.zeros(1, 2, 2**21, requires_grad=True), []  # 16 MiB
    for _ in range(4):
        y = pf.functional.affine_shift(x, torch.ones(1, 2).requires_grad_(), None, [1, 1], [1, -1])
        (gradient,) = torch.autograd.grad(y.sum(), x)
        places.append({y.data_ptr(), gradient.data_ptr()})
        del y, gradient
    assert all(len(two) == 2 and two == places[0] for two in places)


def keep_gradient(z: Tensor) -> object:
    return gradients(z)


def keep_view(z: Tensor) -> object:
    return [gradient[3:5, ::7] for gradient in gradients(z)]


def keep_detached(z: Tensor) -> object:
    return [gradient.detach().T for gradient in gradients(z)]


def keep_array(z: Tensor) -> object:
    return [gradient.numpy() for gradient in gradients(z)]


def keep_memoryview(z: Tensor) -> object:
    return [memoryview(gradient.numpy()) for gradient in gradients(z)]


def keep_storage(z: Tensor) -> object:
    return [gradient.untyped_storage() for gradient in gradients(z)]


def keep_dlpack(z: Tensor) -> object:
    return [torch.utils.dlpack.to_dlpack(gradient) for gradient in gradients(z)]


def keep_grad_of_a_leaf(z: Tensor) -> object:
    leaf = z.detach().clone().requires_grad_()
    losses(leaf)[0].backward()
    return leaf.grad


def keep_grad_that_was_assigned(z: Tensor) -> object:
    parameter = torch.nn.Parameter(z.detach().clone())
    parameter.grad = gradients(z)[1]
    return parameter


def keep_grad_of_a_product(z: Tensor) -> object:
    """The product's backward gives the cotangent on."""
    leaf = z.detach().clone().requires_grad_()
    losses(leaf + 0)[1].backward()
    return leaf.grad


def keep_hooked(z: Tensor) -> object:
    seen = []
    handle = z.register_hook(seen.append)
    gradients(z)
    handle.remove()
    return seen


def keep_operators_result(z: Tensor) -> object:
    return torch.ops.prograd_fast.dual_loss(z.detach(), TEACHER, LABELS, None, None, None, 1.0, True, 1)[2]


HOLDERS = [
    keep_gradient,
    keep_view,
    keep_detached,
    keep_array,
    keep_memoryview,
    keep_storage,
    keep_dlpack,
    keep_grad_of_a_leaf,
    keep_grad_that_was_assigned,
    keep_grad_of_a_product,
    keep_hooked,
    keep_operators_result,
]


def contents(held: object) -> list[Tensor]:
    """Copies of what a holder can still read."""
    parts = held if isinstance(held, list | tuple) else [held]
    found = []
    for part in parts:
        if isinstance(part, torch.nn.Parameter):
            part = part.grad
        if isinstance(part, torch.UntypedStorage):
            part = torch.empty(0).set_(part)
        if isinstance(part, memoryview):
            part = torch.frombuffer(part, dtype=torch.float32)
        if type(part).__name__ == "PyCapsule":
            return [torch.utils.dlpack.from_dlpack(one) for one in parts]  # once only
        found.append(torch.as_tensor(part).clone())
    return found


@pytest.mark.parametrize("keep", HOLDERS, ids=lambda keep: keep.__name__)
def test_nobody_writes_over_what_somebody_holds(keep: Callable[[Tensor], object]) -> None:
    z = student()
    expected = contents(keep(z))  # computed alike, and copied at once
    held = keep(z)
    for seed in (1, 2, 3):
        gradients(student(seed))
    for got, wanted in zip(contents(held), expected, strict=True):
        assert torch.equal(got, wanted)


def test_a_graph_that_is_kept_for_another_backward() -> None:
    z = student()
    wanted = [gradient.clone() for gradient in gradients(z)]
    task, general = losses(z)
    torch.autograd.grad(task, z, retain_graph=True)
    for seed in (1, 2):
        gradients(student(seed))
    for loss, expected in ((general, wanted[1]), (task, wanted[0])):
        assert torch.equal(torch.autograd.grad(loss, z, retain_graph=True)[0], expected)


def test_two_losses_and_two_criteria_at_once() -> None:
    criteria, leaves = (pf.DualLoss(), pf.DualLoss(2.0)), (student(1), student(2))
    wanted = []
    for criterion, z in zip(criteria, leaves, strict=True):
        wanted.append([g.clone() for g in torch.autograd.grad(sum(criterion(z, TEACHER, LABELS)), z)])
    for _ in range(3):
        results = [criterion(z, TEACHER, LABELS) for criterion, z in zip(criteria, leaves, strict=True)]
        for (task, general), z, expected in zip(results, leaves, wanted, strict=True):
            assert torch.equal(torch.autograd.grad(task + general, z)[0], expected[0])


def test_other_shapes_and_dtypes_in_between() -> None:
    first = [gradient.clone() for gradient in gradients(student())]
    held = gradients(student())
    for rows, dtype in ((ROWS, torch.float64), (ROWS // 2, torch.float64), (ROWS, torch.bfloat16), (3, torch.float32)):
        a, _ = gradients(student(1, rows, dtype))
        assert (a.shape, a.dtype) == ((rows, CLASSES), dtype)
        assert all(torch.equal(got, wanted) for got, wanted in zip(held, first, strict=True))


def test_threads_do_not_share_it() -> None:
    leaves = [student(seed) for seed in range(4)]
    wanted = [[gradient.clone() for gradient in gradients(z)] for z in leaves]
    faults = []

    def loop(k: int) -> None:
        for _ in range(5):
            got = gradients(leaves[k])
            if not all(torch.equal(a, b) for a, b in zip(got, wanted[k], strict=True)):
                faults.append(k)

    threads = [threading.Thread(target=loop, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_inference_mode() -> None:
    z = student()
    kept = gradients(z)
    copies = [gradient.clone() for gradient in kept]
    with torch.inference_mode():
        task, _ = losses(z.detach().clone())
        assert task.is_inference()
    with torch.no_grad():
        losses(student(1))
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))
    assert not gradients(student(2))[0].is_inference()


def test_copies_of_a_criterion() -> None:
    criterion, z = pf.DualLoss(), student()
    task, general = criterion(z, TEACHER, LABELS)
    wanted = torch.autograd.grad(task + general, z, retain_graph=True)[0]
    for other in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        other(student(1), TEACHER, LABELS)
        assert torch.equal(torch.autograd.grad(task + general, z, retain_graph=True)[0], wanted)


def test_after_an_exception() -> None:
    z = student()
    first, held = place(z), None
    labels = LABELS.clone()
    labels[-1] = CLASSES
    with pytest.raises(ValueError, match="labels: expected class indices"):
        pf.functional.dual_loss(z, TEACHER, labels)
    assert place(z) == first
    held = gradients(z)
    copies = [gradient.clone() for gradient in held]
    for _ in range(2):
        with pytest.raises(ValueError, match="labels: expected class indices"):
            pf.functional.dual_loss(student(1), TEACHER, labels)
    assert all(torch.equal(a, b) for a, b in zip(held, copies, strict=True))


def test_a_gradient_can_be_resized_and_shared() -> None:
    a, b = gradients(student())
    wanted = b.clone()
    a.resize_(2, ROWS, CLASSES).zero_()
    b = b.share_memory_()
    gradients(student(1))
    assert torch.equal(b.clone(), wanted) or b.is_shared()


GIVEN_BACK = """
import torch
import prograd_fast as pf
from prograd_fast import backends
z, t, y = torch.randn(128, 2**15).requires_grad_(), torch.randn(128, 2**15), torch.arange(128)

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) // 256  # MiB, of pages of 4 KiB

def call(criterion, rows=128):
    task, general = criterion(z[:rows], t[:rows], y[:rows])
    (task + general).backward()
    z.grad = None

criterion = pf.DualLoss()
call(criterion, 8)
before = resident()
both = [criterion(z, t, y) for _ in range(2)]
del both
two_of_a_size = resident() - before
assert 48 < two_of_a_size < 80, two_of_a_size
for rows in range(128, 120, -1):  # 8 sizes
    call(criterion, rows)
three_pieces = resident() - before
assert 64 < three_pieces < 112, three_pieces
call(criterion)
del criterion
without = resident() - before
assert without < 16, without
call(pf.functional.dual_loss)
assert resident() - before > 24
backends.use("reference")
assert resident() - before < 16
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="the system does not say what is in use")
def test_memory_is_given_back() -> None:
    """In a process whose malloc gives every large piece back at once."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**18), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", GIVEN_BACK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr


FORK = """
import os, threading, torch
import prograd_fast as pf
z = torch.randn(64, 2**15, requires_grad=True)
t, y = torch.randn(64, 2**15), torch.arange(64)
torch.set_num_threads(1)

def gradients():
    task, general = pf.functional.dual_loss(z, t, y)
    return torch.autograd.grad(task, z, retain_graph=True)[0], torch.autograd.grad(general, z)[0]

stop, ran = threading.Event(), threading.Event()
def busy():
    while not stop.is_set():
        pf.functional.dual_loss(z.detach(), t, y)
        ran.set()
thread = threading.Thread(target=busy)
wanted = [g.clone() for g in gradients()]
held = gradients()
with torch.no_grad():
    pf.functional.dual_loss(-z, t, y)
thread.start()
ran.wait()  # PyTorch's first calls take a lock of the C library, which a fork leaves locked in the child
for _ in range(2):
    child = os.fork()
    if child == 0:
        with torch.no_grad():
            for _ in range(3):
                pf.functional.dual_loss(-z, t, y)
        os._exit(0 if all(torch.equal(a, b) for a, b in zip(held, wanted)) else 1)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
thread.join()
assert all(torch.equal(a, b) for a, b in zip(held, wanted))
assert all(torch.equal(a, b) for a, b in zip(gradients(), wanted))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_fork() -> None:
    """While another thread takes and returns memory; the child neither waits for it nor shares what it writes."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
