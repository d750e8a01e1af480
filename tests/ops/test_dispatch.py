"""The operators as PyTorch sees them: schemas, fakes, compilation, and backends that come and go."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from prograd_fast import backends, functional
from tests.ops.calls import CALLS, Call, Sizes
from tests.ops.support import BACKENDS, normal, running_on

operators = torch.ops.prograd_fast


NAMES = sorted(CALLS)


def arguments(name: str) -> Call:
    """Small arguments of an operator."""
    return CALLS[name](Sizes())


# opcheck looks at .grad of the operator's results
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend: str, name: str) -> None:
    args, kwargs = arguments(name)
    with running_on(backend):
        torch.library.opcheck(getattr(operators, name).default, tuple(args), kwargs)


def test_all_operators_are_checked() -> None:
    defined = {name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names() if "prograd" in name}
    of_an_encoder = {"encode_prompts", "encode_prompts_backward"}  # tests/clip/test_compiled.py
    assert defined - of_an_encoder == {*NAMES}


# inductor generates code of its own around the operators: one case is enough, it takes seconds
@pytest.mark.parametrize("compiler", ["eager", "aot_eager", "inductor"])
def test_compiles_as_one_graph(compiler: str) -> None:
    image, teacher, labels, lr = normal(6, 9, seed=1), normal(6, 9, seed=2), torch.arange(6), torch.tensor(0.1)

    def losses(context: Tensor) -> tuple[Tensor, Tensor]:
        return functional.dual_loss(image * context, teacher, labels, 2.0)

    def step(new: Tensor, a: Tensor, b: Tensor) -> None:
        functional.project_adamw_([new], [a], [b], [torch.zeros_like(a)], [torch.zeros_like(a)], 1, lr=lr)

    def both(compile_: Callable[..., Any]) -> Tensor:
        context = normal(9).requires_grad_()
        task, general = compile_(losses)(context)
        (a,) = torch.autograd.grad(task, context, retain_graph=True)
        (b,) = torch.autograd.grad(general, context)
        new = context.detach().clone()
        compile_(step)(new, a, b)
        return new

    compiled = both(partial(torch.compile, fullgraph=True, backend=compiler))
    torch.testing.assert_close(compiled, both(lambda function: function))


def test_a_new_learning_rate_does_not_compile_again() -> None:
    count = 0

    def counting(graph: torch.fx.GraphModule, _: object) -> object:
        nonlocal count
        count += 1
        return graph.forward

    task, general = [normal(5)], [-normal(5)]

    @torch.compile(fullgraph=True, backend=counting)
    def step(param: Tensor, lr: Tensor) -> None:
        functional.project_sgd_([param], task, general, lr=lr)

    param = normal(5, seed=2)
    for k in range(4):
        step(param, torch.tensor(0.1 / (k + 1)))
    assert count == 1


def test_no_value_is_read_back() -> None:
    """On a GPU `_local_scalar_dense` is what waits for the device."""

    class Forbid(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            assert "_local_scalar_dense" not in str(function)
            return function(*args, **(kwargs or {}))

    with running_on("reference"):
        for name in NAMES:
            args, kwargs = arguments(name)
            with Forbid():
                getattr(operators, name).default(*args, **kwargs)
        args, _ = arguments("project_adamw_")
        with Forbid():
            operators.project_adamw_(*args[:-1], torch.tensor(0.0))


def test_backends_come_and_go() -> None:
    before = backends.active()["cpu"]
    assert before == BACKENDS[-1]  # the compiled kernels, where there are any
    args, kwargs = arguments("gram_out")
    results = []
    for name in (*BACKENDS, "reference"):
        with running_on(name):
            assert backends.active()["cpu"] == name
            operators.gram_out(*args, **kwargs)
            results.append(kwargs["entries"].clone())
    assert backends.active()["cpu"] == before
    for other in results:
        torch.testing.assert_close(other, results[0])


def test_unknown_and_unusable_backends_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="expected one of reference, cuda, triton, cpu, got 'tpu'"):
        backends.use("tpu")
    monkeypatch.setattr("prograd_fast.backends.cpu.missing", lambda: "the kernels are not built. Build them.")
    assert "cpu" not in backends.available()
    with pytest.raises(RuntimeError, match="cpu: the kernels are not built"):
        backends.use("cpu")
