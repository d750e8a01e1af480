"""Guards the fused AdamW update that goes around torch.optim's Python: the same bits, or torch's own way and errors."""

from typing import Any

import pytest
import torch
from torch import Tensor

import prograd_fast as pf
from prograd_fast.ops.registry import SHORTCUTS

pytestmark = [
    pytest.mark.skipif("adamw" not in SHORTCUTS, reason="the compiled kernels are not built"),
    pytest.mark.filterwarnings("ignore:.*never got a general gradient:UserWarning"),
]
SETTINGS = {"lr": 0.03, "betas": (0.8, 0.97), "eps": 1e-6, "weight_decay": 0.2, "fused": True}
# a prompt; no dimension; nothing; less than a vector; above what torch gives to several threads
SHAPES = [(16, 512), (), (0,), (7,), (3, 70_000)]


def both(shapes: list[tuple[int, ...]], dtype: torch.dtype, **settings: Any) -> list[torch.optim.Optimizer]:
    made = []
    for kind in (pf.ProGradAdamW, torch.optim.AdamW):
        g = torch.Generator().manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(s, generator=g, dtype=torch.float64).to(dtype)) for s in shapes]
        made.append(kind(params, **(SETTINGS | settings)))
    return made


def parameters(opt: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in opt.param_groups for p in group["params"]]


def give_gradients(opt: torch.optim.Optimizer, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    for p in parameters(opt):
        p.grad = torch.randn(p.shape, generator=g, dtype=torch.float64).to(p.dtype)


def same(one: torch.optim.Optimizer, other: torch.optim.Optimizer) -> bool:
    equal = all(map(torch.equal, parameters(one), parameters(other)))
    for p, q in zip(parameters(one), parameters(other), strict=True):
        assert one.state[p].keys() == other.state[q].keys()
        equal &= all(torch.equal(one.state[p][name], other.state[q][name]) for name in one.state[p])
    return equal


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What the shortcut answered, call by call."""
    answers: list[bool] = []
    operator = SHORTCUTS["adamw"]

    def noted(*arguments: Any) -> bool:
        answers.append(operator(*arguments))
        return answers[-1]

    monkeypatch.setitem(SHORTCUTS, "adamw", noted)
    return answers


@pytest.mark.parametrize("change", [{}, {"amsgrad": True}, {"maximize": True, "weight_decay": 0.0}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_bits_of_torch(ways: list[bool], dtype: torch.dtype, change: dict[str, Any]) -> None:
    own, torchs = both(SHAPES, dtype, **change)
    versions = [p._version for p in parameters(own)]
    for step in range(5):
        for opt in (own, torchs):
            give_gradients(opt, step)
            parameters(opt)[step % 2].grad = None  # a parameter that a loss does not reach
            for group in opt.param_groups:
                group["lr"] = 0.03 / (step + 1)
            opt.step()
        assert same(own, torchs)
    assert ways.count(True) >= 3  # the state is there
    assert all(p._version > before for p, before in zip(parameters(own), versions, strict=True))


def _tensor_rate(opt: torch.optim.Optimizer) -> None:
    opt.param_groups[0]["lr"] = torch.tensor(0.02)


def _strided(opt: torch.optim.Optimizer) -> None:
    p = parameters(opt)[0]
    p.data = p.data.T.contiguous().T  # as channels_last does; the state keeps its layout


def _coupled(opt: torch.optim.Optimizer) -> None:
    opt.param_groups[0]["decoupled_weight_decay"] = False


def _overflow(opt: torch.optim.Optimizer) -> None:
    opt.grad_scale, opt.found_inf = torch.tensor(2.0), torch.tensor(1.0)  # type: ignore[attr-defined]


def _another_group(opt: torch.optim.Optimizer) -> None:
    opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))], "weight_decay": 0.0})


def _no_group(opt: torch.optim.Optimizer) -> None:
    opt.param_groups.clear()


def _whole_rate(opt: torch.optim.Optimizer) -> None:
    opt.param_groups[0]["lr"] = 1


@pytest.mark.parametrize(
    "change",
    [_tensor_rate, _strided, _coupled, _overflow, _another_group, _no_group, _whole_rate],
    ids=lambda change: change.__name__,
)
def test_what_torch_must_look_at_goes_torchs_way(ways: list[bool], change: Any) -> None:
    own, torchs = both([(4, 6), (5,)], torch.float32)
    for step in range(3):
        for opt in (own, torchs):
            give_gradients(opt, step)
            if step == 2:
                change(opt)
                give_gradients(opt, step)
            opt.step()
    assert same(own, torchs)
    assert ways[1:] in ([], [False])


def test_subclasses_and_modes_see_the_update(ways: list[bool]) -> None:
    own, _ = both([(4, 6)], torch.float32)
    seen = []

    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    for _ in range(2):
        give_gradients(own, 0)
        own.step()
    with Mode():
        own.step()
    assert "aten._fused_adamw_.default" in seen
    assert ways == [True, False]


@pytest.mark.parametrize("entry", ["exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step"])
@pytest.mark.parametrize("damage", ["missing", "shape", "dtype", "freed"])
def test_a_damaged_state_moves_nothing(entry: str, damage: str) -> None:
    own, _ = both([(4, 6), (5,)], torch.float32, amsgrad=True)
    for step in range(2):
        give_gradients(own, step)
        own.step()
    state = own.state[parameters(own)[1]]
    if damage == "missing":
        del state[entry]
    elif damage == "shape":
        state[entry] = torch.zeros(6)
    elif damage == "dtype":
        state[entry] = state[entry].long()
    else:
        state[entry].untyped_storage().resize_(0)
    before = [p.detach().clone() for p in parameters(own)]
    with pytest.raises(RuntimeError, match=f"step: {entry} of parameter 1 of group 0"):
        own.step()
    assert all(map(torch.equal, parameters(own), before))
