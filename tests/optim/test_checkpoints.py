"""Guards checkpoints: rules keep their memory through torch.distributed.checkpoint, and torch.optim's go either way."""

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)

import prograd_fast as pf
from tests.optim.kinds import KINDS, OPTIMIZERS, PLAIN, RULES, everything, losses, refused, tensors
from tests.optim.support import same
from tests.slow import slow_but_for

# torch's own: of a process that is alone, and of how it loads
pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.distributed is disabled", "ignore:TypedStorage", "ignore:.*no process group", "ignore::FutureWarning"
)
unprojected = pytest.mark.filterwarnings("ignore:.*never got a general gradient")  # see test_a_new_optimizer_is_asked
MEMORY = ["none", "PCGrad", "GradVac", "Bloop"]


def model_and_optimizer(kind: str, rule: str, seed: int = 0, **settings: Any) -> tuple[nn.ParameterList, Any]:
    model = nn.ParameterList(tensors())
    with torch.no_grad():
        for p in model:
            p += seed
    return model, OPTIMIZERS[kind](model.parameters(), rule=RULES[rule](), **settings)


def train(model: nn.ParameterList, opt: Any, steps: range, one_call: bool = False) -> None:
    for step in steps:
        opt.zero_grad()
        if one_call:
            opt.backward_and_update(*losses(list(model), step))
        else:
            opt.backward(*losses(list(model), step))
            opt.step()
    opt.zero_grad()


OPTIONS = {
    "default": None,
    "flat": StateDictOptions(flatten_optimizer_state_dict=True),
    "full, on the CPU": StateDictOptions(full_state_dict=True, cpu_offload=True),
}


@unprojected
@pytest.mark.parametrize("one_call", slow_but_for([False], [False, True]))
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("rule", MEMORY)
@pytest.mark.parametrize("kind", KINDS)
def test_state_dicts_of_torch_distributed(kind: str, rule: str, options: str, one_call: bool) -> None:
    """Row 14 of the table: the memory was outside of `state[p]`, and dropped. By names, and into a new optimizer."""
    model, opt = model_and_optimizer(kind, rule)
    twin, other = model_and_optimizer(kind, rule, seed=5)
    train(model, opt, range(3), one_call)
    state = get_optimizer_state_dict(model, opt, options=OPTIONS[options])
    twin.load_state_dict(model.state_dict())
    set_optimizer_state_dict(twin, other, copy.deepcopy(state), options=OPTIONS[options])  # torch shares its memory
    assert same(everything(other).values(), everything(opt).values())
    train(model, opt, range(3, 6), one_call)
    train(twin, other, range(3, 6), one_call)
    assert same(everything(other).values(), everything(opt).values())


@unprojected
@pytest.mark.parametrize("rule", MEMORY)
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_of_torch_distributed_goes_on(kind: str, rule: str, tmp_path: Path) -> None:
    """Saved, and loaded into what a new optimizer says that it has: three steps and three are six."""
    model, opt = model_and_optimizer(kind, rule)
    train(model, opt, range(3))
    parts = get_state_dict(model, opt)
    dcp.save(dict(zip(("model", "optimizer"), parts, strict=True)), checkpoint_id=tmp_path)
    twin, other = model_and_optimizer(kind, rule, seed=5)
    loaded = dict(zip(("model", "optimizer"), get_state_dict(twin, other), strict=True))
    dcp.load(loaded, checkpoint_id=tmp_path)
    set_state_dict(twin, other, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"])  # type: ignore[arg-type]
    train(model, opt, range(3, 6))
    train(twin, other, range(3, 6))
    assert same(everything(other).values(), everything(opt).values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_optimizer_is_asked_for_its_state(kind: str) -> None:
    """torch.distributed.checkpoint makes it by a step on zeros at a rate of 0, which is no step of the user's."""
    model, opt = model_and_optimizer(kind, "none")
    get_optimizer_state_dict(model, opt)
    model[0].sum().backward()
    with pytest.warns(UserWarning, match="never got a general gradient"):
        opt.step()


@unprojected
def test_lambda_goes_with_the_checkpoint(tmp_path: Path) -> None:
    """It is a setting of the groups, as the learning rate."""
    model, opt = model_and_optimizer("adamw", "none", lambda_=0.25)
    train(model, opt, range(2))
    dcp.save({"optimizer": get_optimizer_state_dict(model, opt)}, checkpoint_id=tmp_path)
    twin, other = model_and_optimizer("adamw", "none")
    loaded = {"optimizer": get_optimizer_state_dict(twin, other)}
    dcp.load(loaded, checkpoint_id=tmp_path)
    set_optimizer_state_dict(twin, other, loaded["optimizer"])
    assert [group["lambda_"] for group in other.param_groups] == [0.25]


@pytest.mark.parametrize("rule", MEMORY)
@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_through_torch_optim(kind: str, rule: str) -> None:
    """Ours, then torch.optim's plain steps, then ours: torch keeps what it does not know, and hands it back."""
    model, opt = model_and_optimizer(kind, rule)
    train(model, opt, range(2))
    plain = PLAIN[kind](model.parameters())
    plain.load_state_dict(through_file(opt))
    for step in range(2, 4):
        plain.zero_grad()
        losses(list(model), step)[0].backward()
        plain.step()
    twin, other = model_and_optimizer(kind, rule, seed=5)
    twin.load_state_dict(model.state_dict())
    other.load_state_dict(through_file(plain))
    train(twin, other, range(4, 6))

    expected, whole = model_and_optimizer(kind, rule)
    train(expected, whole, range(2))
    for step in range(2, 4):
        whole.zero_grad()
        losses(list(expected), step)[0].backward()
        whole.step()
    train(expected, whole, range(4, 6))
    assert same(everything(other).values(), everything(whole).values())
    assert {name for _, _, name in everything(other)} == {name for _, _, name in everything(whole)}


@pytest.mark.parametrize("rule", MEMORY)
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_of_torch_optim(kind: str, rule: str) -> None:
    """It has no λ and no memory: the optimizer's own λ stays, the memory begins at the next step."""
    model = nn.ParameterList(tensors())
    plain = PLAIN[kind](model.parameters())
    for step in range(2):
        plain.zero_grad()
        losses(list(model), step)[0].backward()
        plain.step()
    settings = {"lambda_": 0.25} if rule == "none" else {}
    twin, other = model_and_optimizer(kind, rule, seed=5, **settings)
    twin.load_state_dict(model.state_dict())
    other.load_state_dict(through_file(plain))
    if rule == "none":
        assert other.param_groups[0]["lambda_"] == 0.25
    train(twin, other, range(2, 4))
    for x, state in zip(twin, (other.state[p] for p in twin), strict=True):
        assert x.isfinite().all()
        assert ("task_average" in state) == (rule == "Bloop")


def through_file(opt: Any) -> Any:
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_memory_of_other_parameters(kind: str) -> None:
    """A checkpoint of smaller parameters: one message before anything moves."""
    _, opt = model_and_optimizer(kind, "Bloop")
    small = tensors(((2, 2), (4,)))
    other = OPTIMIZERS[kind](small, rule=RULES["Bloop"]())
    other.backward_and_update(*losses(small, 0))
    params = [p for group in opt.param_groups for p in group["params"]]
    before = [p.detach().clone() for p in params]
    with pytest.raises(RuntimeError, match=r"parameter 0 of group 0.*expected|expected.*got"):  # noqa: PT012
        opt.load_state_dict(other.state_dict())
        with refused(opt, RuntimeError, "expected"):
            opt.backward_and_update(*losses(params, 0))
        opt.backward_and_update(*losses(params, 0))
    assert same(params, before)


def test_memory_waits_for_the_state_of_the_inner_optimizer() -> None:
    """Optimizers that look for their state with `if not state` would find the rule's, and raise KeyError."""
    inners = (torch.optim.AdamW, torch.optim.RMSprop, torch.optim.NAdam, torch.optim.Adadelta, torch.optim.Adamax)
    inners += (torch.optim.RAdam, torch.optim.ASGD, torch.optim.Rprop, torch.optim.Adagrad)
    for make in inners:
        for rule in ("Bloop", "GradVac"):
            params = tensors()
            opt = pf.ProGrad(make(params, lr=0.01), rule=RULES[rule]())
            for step in range(3):
                opt.zero_grad()
                opt.backward(*losses(params, step))
                opt.step()
            names = {"Bloop": "task_average", "GradVac": "target_cosine"}
            assert all(names[rule] in opt.state[p] for p in params)
