"""The parts of `tools.gpu_check`: right results, sanitizer, graphs, speed.

No part has a list of operators: those of the registry are taken, with the calls that the tests make of them.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import prograd_fast as pf
from benchmarks import steps
from benchmarks.measure import Side
from prograd_fast import backends
from tests.ops.calls import CALLS, Sizes
from tests.tolerances import TOLERANCES, relative_error
from tools.gpu_calls import OPERATORS, SMALL_TOWER, Stepping, moved, prompt_step, tensors_in, use, with_kernels, written
from tools.gpu_speed import speed
from tools.gpu_work import MissingError, Work

# ---- right results

# those of two-byte floats last: Triton compiles for seconds, and time may be up
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Wide(Sizes):
    """Numbers of which sums of `width` products are a few units large, as CLIP's logits are."""

    def draw(self, *shape: int, seed: int = 0) -> Tensor:
        """Normal numbers of a smaller deviation."""
        return super().draw(*shape, seed=seed) * (2 / self.width**0.25)


SIZES = {
    "small": [Sizes(scope=i, reduction=i) for i in range(3)],
    # nothing is a multiple of 16 bytes
    "odd": [Wide(rows=7, classes=1001, width=513, samples=32, shapes=((1,), (0,), (9, 1001), (3,)), scope=1)],
    # a batch against ImageNet's classes, and a context of 16 tokens
    "users'": [Wide(rows=32, classes=1000, width=512, samples=64, shapes=((16, 512), (512,), ()))],
    # ImageNet-21k, and lists that take two launches
    "large": [Wide(rows=8, classes=21841, width=512, samples=32, shapes=((300_000,), (64, 5000)), scope=2)],
}


def correct(work: Work, backend: str) -> None:
    """Run every operator on a backend against the reference in float64, over dtypes and sizes."""
    stand_in = use(work, backend)
    names = with_kernels(work.device)
    undefined = sorted(names - CALLS.keys())
    work.case(
        "every operator has a call", lambda: _expect(not undefined, f"no call in tests/ops/calls.py: {undefined}")
    )
    for size in ("small", "odd") if work.fake else SIZES:
        for name in sorted(names & CALLS.keys()):
            for dtype in DTYPES:
                cases = [replace(one, dtype=dtype) for one in SIZES[size]]
                run = partial(errors_of, name, cases, work.device, stand_in)
                work.case(f"{name}, {str(dtype).removeprefix('torch.')}, {size}", run)


def errors_of(name: str, cases: Sequence[Sizes], device: str, backend: str) -> float:
    """Call an operator on a device and in float64 on a CPU; its largest relative error over several calls."""
    return max(error_of(name, sizes, device, backend) for sizes in cases)


def error_of(name: str, sizes: Sizes, device: str, backend: str) -> float:
    """Largest relative error of all that an operator writes.

    Raises:
        AssertionError: a result misses its tolerance; says which.
    """
    made = CALLS[name](sizes)
    wide = CALLS[name](replace(sizes, dtype=torch.float64))
    for narrow, exact in zip(tensors_in(made), tensors_in(wide), strict=True):
        exact.copy_(narrow)
    given = moved(made, device)
    backends.use("reference")
    try:
        getattr(OPERATORS, name)(*wide[0], **wide[1])
    finally:
        backends.use(backend)
    getattr(OPERATORS, name)(*given[0], **given[1])
    results = written(name, given)
    allowed = TOLERANCES["formula", sizes.dtype]  # of the inputs: products may round what they multiply to it
    found = [0.0]
    for (argument, got), (_, expected) in zip(results, written(name, wide), strict=True):
        found.append(relative_error(got.cpu(), expected))
        within = found[-1] <= (allowed if got.is_floating_point() else 0.0)  # NaN is not
        _expect(
            within, f"{argument}, {tuple(got.shape)} {got.dtype}: relative error {found[-1]:.2e}, allowed {allowed}"
        )
    return max(found)


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise AssertionError(otherwise)


# ---- sanitizer


def sanitizer(work: Work) -> None:
    """Run every operator at small sizes under compute-sanitizer: memcheck, racecheck."""
    if work.fake:
        raise MissingError("a CPU has no compute-sanitizer")
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        raise MissingError("compute-sanitizer is not on the PATH")
    for check in ("memcheck", "racecheck"):
        for backend in ("cuda", "triton"):
            work.case(f"{check}, {backend}", partial(_sanitized, work, [tool, "--tool", check], backend))


def _sanitized(work: Work, tool: list[str], backend: str) -> None:
    """The operators of one backend under one tool, in a process of its own."""
    code = f"from tools import gpu_parts; gpu_parts.call_all({backend!r})"
    command = [*tool, "--error-exitcode", "9", sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=max(work.left, 1))
    _expect(result.returncode == 0, (result.stdout + result.stderr)[-1500:])


def call_all(backend: str, device: str = "cuda") -> None:
    """Call every operator at the smallest sizes."""
    if backends.missing(backend) is not None:
        return
    backends.use(backend)
    for name in sorted(with_kernels(device) & CALLS.keys()):
        for dtype in (torch.float32, torch.bfloat16):
            args, kwargs = moved(CALLS[name](Sizes(dtype=dtype)), device)
            getattr(OPERATORS, name)(*args, **kwargs)
    if device == "cuda":
        torch.cuda.synchronize()


# ---- graphs

STEPS, WARM = 100, 5


def graphs(work: Work) -> None:
    """Replay captured steps 100 times and compare them bit for bit with eager ones."""
    for optimizer in (pf.ProGradAdamW, pf.ProGradSGD):
        for name, shapes in {"context": steps.CONTEXT, "200 tensors": [(1 + 5 * i,) for i in range(200)]}.items():
            made = partial(optimizer_step, optimizer, shapes, work.device)
            work.case(f"{optimizer.__name__}, {name}", partial(same_in_a_graph, made, work.fake))
    made = partial(prompt_step, *((5, SMALL_TOWER) if work.fake else (100, {})))
    work.case("prompt step", partial(same_in_a_graph, made, work.fake))


def optimizer_step(optimizer: type[Any], shapes: steps.Shapes, device: str) -> Stepping:
    """A step on two squared distances, whose gradients change from step to step."""
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(3, *shape, generator=generator).to(device) for shape in shapes]
    params = [torch.nn.Parameter(d[0].clone()) for d in draw]
    opt = optimizer(params, lr=0.01)

    def step() -> None:
        task, general = (sum((p - d[k]).square().sum() for p, d in zip(params, draw, strict=True)) for k in (1, 2))
        opt.backward_and_update(task, general)

    return step, [p.detach() for p in params]


def same_in_a_graph(make: Callable[[], Stepping], fake: bool) -> None:
    """Fail unless a captured step and an eager one, made alike, lead to the same bits."""
    (eager, expected), (captured, got) = make(), make()
    for _ in range(WARM):
        eager()
    replay = capture(captured, fake)
    for _ in range(3 if fake else STEPS):
        eager()
        replay()
    different = sum(not torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    _expect(different == 0, f"{different} of {len(got)} tensors differ")


def capture(step: Side, fake: bool) -> Side:
    """The step as a CUDA graph, after some on a stream of their own; on a CPU the step itself."""
    if fake:
        for _ in range(WARM):
            step()
        return step
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


# ---- the parts


@dataclass(frozen=True)
class Part:
    """What to run, and the seconds that it may take."""

    run: Callable[[Work], None]
    seconds: int


def correct_cuda(work: Work) -> None:
    """Run every operator of the C++ backend against the reference in float64."""
    correct(work, "cuda")


def correct_triton(work: Work) -> None:
    """Run every operator of the Triton backend against the reference in float64."""
    correct(work, "triton")


PARTS = {
    "correct-cuda": Part(correct_cuda, 120),
    "correct-triton": Part(correct_triton, 200),
    "graphs": Part(graphs, 80),
    "speed": Part(speed, 200),
    "sanitizer": Part(sanitizer, 120),
}
"""12 minutes together."""
