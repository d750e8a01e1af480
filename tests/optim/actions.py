"""What a program may do with an optimizer of two gradients: each action does one thing on both sides, at random.

An action draws its details from a generator of its own, and raises `NotNowError` where it makes no sense.
"""

import copy
import pickle
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.optim.side_by_side import Given, SideBySide, eighths, loss_of, shortened

Pair = tuple[Tensor | None, Tensor | None]


def nought(shape: tuple[int, ...]) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


def spoilt(x: Tensor, value: float) -> Tensor:
    x.view(-1)[-1:] = value
    return x


def apart(a: Tensor, b: Tensor) -> Pair:
    """Each is zero where the other is not: ⟨a,b⟩ = 0."""
    a.view(-1)[::2] = 0
    return a, b * (a == 0)


# how two gradients of one parameter may stand to each other; x and y are two that have nothing to do with each other
PAIRS: dict[str, Callable[[Tensor, Tensor], Pair]] = {
    "any": lambda x, y: (x, y),
    "conflict": lambda x, y: (x, y / 4 - x),
    "agreement": lambda x, y: (x, y / 4 + x),
    "opposed": lambda x, y: (x, -2 * x),
    "orthogonal": apart,
    "no a": lambda x, y: (None, y),
    "no b": lambda x, y: (x, None),
    "neither": lambda x, y: (None, None),
    "zero a": lambda x, y: (nought(x.shape), y),
    "zero b": lambda x, y: (x, nought(x.shape)),
    "b is rounding": lambda x, y: (x, -x * 2.0**-60),
    "b is small": lambda x, y: (x, y * 2.0**-7),
    "b infinite": lambda x, y: (x, spoilt(y, float("inf"))),
    "b nan": lambda x, y: (x, spoilt(y, float("nan"))),
    "a infinite": lambda x, y: (spoilt(x, float("-inf")), y),
}
USUAL = ["any", "conflict", "conflict", "conflict", "agreement"]
UNUSUAL = [*PAIRS, "b is rounding", "b is rounding", "b is small"]


# the usual one, none, and two between which much of what is drawn lies
FLOORS = [None, None, 0.0, 1e-3, 0.25]


class NotNowError(Exception):
    """The action makes no sense here."""


class Program(SideBySide):
    """Both sides, and where a program is in its loop; `said` tells what the last action did."""

    def __init__(self, optimizer: str, rule: str, scope: str, seed: int) -> None:
        random = Random(seed)
        super().__init__(optimizer, rule, scope, seed, random.random() < 0.3, random.random() < 0.5)
        self.blocks: list[tuple[Any, Any]] = []
        self.unscaled = False
        self.saved: Any = None
        self.said = ""
        self.set_floor(random.choice(FLOORS))

    @property
    def sums(self) -> bool:
        return any(self.model.sums)

    @property
    def sides(self) -> list[tuple[Any, list[Tensor]]]:
        return [(self.opt, self.params), (self.model.opt, self.twins)]

    @property
    def gradients_there(self) -> bool:
        return any(q.grad is not None for q in self.model.params)

    def need(self, *conditions: Any) -> None:
        if not all(conditions):
            raise NotNowError

    def between_steps(self) -> None:
        """No block is open, nothing is pending: a place for checkpoints and copies.

        (A first update that is skipped in one call has made a state of zeros, one that GradScaler skips has made none.
        Both are right; but what the rule remembers is in a checkpoint as soon as there is a state.)
        """
        self.need(not self.blocks, not self.sums, not self.unscaled)
        states = [[bool(opt.state.get(p)) for p in params] for opt, params in self.sides]
        self.need(states[0] == states[1])

    def place(self, random: Random) -> tuple[int, int, int]:
        """One of the optimizer's parameters: its group, where it is there, its number."""
        groups = self.model.opt.param_groups
        places = [(i, j) for i, group in enumerate(groups) for j in range(len(group["params"]))]
        n = random.randrange(len(places))
        return *places[n], self.held[n]

    def gradients(self, random: Random) -> tuple[Given, Given]:
        """Two gradients; both reach a parameter of the optimizer, or there is no general one."""

        def kind() -> str:
            drawn = random.choice(USUAL if random.random() < 0.6 else UNUSUAL)
            # the sine of a straight angle, which GradVac takes, is the root of a rounding
            return "conflict" if drawn == "opposed" and self.rule_name == "GradVac" else drawn

        usual = kind()
        a: dict[int, Tensor] = {}
        b: dict[int, Tensor] = {}
        for i, q in enumerate(self.twins):
            if not q.requires_grad:
                continue
            one = usual if random.random() < 0.75 else kind()
            x, y = PAIRS[one](eighths(q.shape, random), eighths(q.shape, random))
            a |= {} if x is None else {i: x}
            b |= {} if y is None else {i: y}
            self.said += f" {i}: {one};"
        self.need(any(i in a for i in self.held))
        if random.random() < 0.1 or not any(i in b for i in self.held):
            b = {}
            self.said += " no general"
        return a, b


Act = Callable[[Program, Random], None]
ACTIONS: dict[str, tuple[int, Act]] = {}


def action(weight: int) -> Callable[[Act], Act]:
    """Register an action; one of twice the weight comes twice as often."""

    def register(act: Act) -> Act:
        ACTIONS[act.__name__] = weight, act
        return act

    return register


# ---- gradients and steps


@action(30)
def backward(s: Program, random: Random) -> None:
    s.need(not s.unscaled)
    s.backward(*s.gradients(random))


@action(6)
def plain_backward(s: Program, random: Random) -> None:
    s.need(not s.unscaled)
    a, _ = s.gradients(random)
    s.plain_backward(a)


@action(24)
def step(s: Program, random: Random) -> None:
    """Also a second time, and without gradients; an error while there are sums."""
    s.need(not s.scaled or (not s.sums and s.gradients_there))
    s.step()
    s.unscaled = False


@action(14)
def backward_and_update(s: Program, random: Random) -> None:
    """Also inside of the block, where it is an error; what `.grad` holds counts."""
    s.need(not s.unscaled, not (s.blocks and s.scaled))
    gradients = s.gradients(random)
    s.on_both(shortened)
    s.backward_and_update(*gradients)


@action(5)
def step_on_pair(s: Program, random: Random) -> None:
    """As `backward_and_update`."""
    s.need(not s.scaled)
    a, b = s.gradients(random)
    s.need(b)
    s.on_both(shortened)
    s.step_on_pair(a, b, random.choice([tuple, list]))


@action(5)
def step_on_loss(s: Program, random: Random) -> None:
    """A closure that does the backward itself, ours or a plain one, and returns a loss, or a loss and outputs.

    Inside of a block ours only adds up, and the step is an error.
    """
    s.need(not s.scaled)
    ours, outputs = random.random() < 0.5, random.random() < 0.5
    s.said += f" ours={ours} outputs={outputs}"
    a, b = s.gradients(random)

    def closure() -> Any:
        s.opt.zero_grad()
        loss = loss_of(s.params, a)
        s.opt.backward(*s.losses(a, b)) if ours else loss.backward()
        return (loss, torch.zeros(2)) if outputs else loss

    def on_model() -> None:
        s.model.zero_grad()
        s.model.backward(s.by_twin(a), s.by_twin(b)) if ours else loss_of(s.twins, a).backward()
        s.model.step()

    s.both(on_model, lambda: s.opt.step(closure))


# ---- what anybody does to gradients and parameters


@action(8)
def zero_grad(s: Program, random: Random) -> None:
    s.zero_grad(random.random() < 0.7)


@action(5)
def model_zero_grad(s: Program, random: Random) -> None:
    set_to_none = random.random() < 0.6
    s.on_both(lambda params: torch.nn.ParameterList(params).zero_grad(set_to_none))


@action(4)
def drop_grad(s: Program, random: Random) -> None:
    i = random.randrange(len(s.params))
    s.on_both(lambda params: setattr(params[i], "grad", None))


def masked(g: Tensor) -> None:
    g.view(-1)[::2] = 0


EDITS: dict[str, Callable[[list[Tensor]], Any]] = {
    "mask": lambda params: [masked(p.grad) for p in params if p.grad is not None],
    "halve": lambda params: [p.grad.mul_(0.5) for p in params if p.grad is not None],
    "clip": lambda params: torch.nn.utils.clip_grad_norm_(params, 1.0),
    "clip values": lambda params: [p.grad.clamp_(-1, 1) for p in params if p.grad is not None],
}


@action(6)
def edit_grad(s: Program, random: Random) -> None:
    how = random.choice(list(EDITS))
    s.said += how
    s.on_both(EDITS[how])


@action(4)
def replace_grad(s: Program, random: Random) -> None:
    i = random.randrange(len(s.params))
    new = eighths(s.twins[i].shape, random)
    s.on_both(lambda params: setattr(params[i], "grad", new.clone()))


@action(4)
def edit_data(s: Program, random: Random) -> None:
    i = random.randrange(len(s.params))
    new = eighths(s.twins[i].shape, random)
    if random.random() < 0.5:
        s.on_both(lambda params: params[i].data.copy_(new))
    else:
        s.on_both(lambda params: setattr(params[i], "data", new.clone()))


@action(4)
def toggle_requires_grad(s: Program, random: Random) -> None:
    s.need(not s.sums)
    i = random.randrange(len(s.params))
    s.said += f"{i} {not s.twins[i].requires_grad}"
    s.on_both(lambda params: params[i].requires_grad_(not params[i].requires_grad))


# ---- the accumulate block


@action(14)
def enter_block(s: Program, random: Random) -> None:
    s.need(len(s.blocks) < 2, not s.unscaled)
    block = s.opt.accumulate(), s.model.accumulate()
    for side in block:
        side.__enter__()
    s.blocks.append(block)


@action(14)
def leave_block(s: Program, random: Random) -> None:
    s.need(s.blocks)
    for side in s.blocks.pop():
        side.__exit__(None, None, None)


@action(3)
def fail_in_block(s: Program, random: Random) -> None:
    """An exception leaves the block, which does not swallow it."""
    s.need(s.blocks)
    for side in s.blocks.pop():
        assert not side.__exit__(ArithmeticError, ArithmeticError("in the block"), None), "it was swallowed"


@action(3)
def mistake_in_block(s: Program, random: Random) -> None:
    """What the block refuses: a weight; a scaler that is not the sums'."""
    s.need(s.blocks)
    a, b = s.gradients(random)
    if s.sums and random.random() < 0.5:
        with pytest.raises(ValueError, match="scaler"):
            s.opt.backward(*s.losses(a, b), scaler=torch.amp.GradScaler("cpu", init_scale=2.0))
    else:
        with pytest.raises(ValueError, match="weight"):
            s.opt.backward(*s.losses(a, b), weight=2.0, **s.with_scaler)


# ---- what else a training loop does


@action(5)
def unscale(s: Program, random: Random) -> None:
    s.need(s.scaled, not s.unscaled, not s.blocks, not s.sums, s.gradients_there)
    s.unscale()
    s.unscaled = True


@action(4)
def set_floor(s: Program, random: Random) -> None:
    floor = random.choice(FLOORS)
    s.said += f"{floor}"
    s.set_floor(floor)


@action(5)
def schedule(s: Program, random: Random) -> None:
    group = random.randrange(len(s.model.opt.param_groups))
    name = random.choice(["lr", "weight_decay", *([] if s.rule else ["lambda_", "lambda_"])])
    value = random.choice([0.25, 1.5, 0.0] if name == "lambda_" else [0.015, 0.06])
    s.said += f"group {group}: {name} = {value}"
    s.on_groups(lambda opt, params: opt.param_groups[group].__setitem__(name, value))


# ---- surgery on the groups; a basis has a column for each element, so that Subspace takes part in the last two only


@action(3)
def add_group(s: Program, random: Random) -> None:
    s.need(not s.sums, s.rule_name != "Subspace", len(s.held) < 6)
    i = s.new_parameter(random.choice([(2, 2), (3,), (), (0,)]), random)
    own = {"lr": 0.02} | ({} if s.rule or random.random() < 0.5 else {"lambda_": 0.25})
    s.said += f"{i} {own}"
    s.on_groups(lambda opt, params: opt.add_param_group({"params": [params[i]], **own}))


@action(3)
def append_to_group(s: Program, random: Random) -> None:
    s.need(not s.sums, s.rule_name != "Subspace", len(s.held) < 6)
    group, i = random.randrange(len(s.model.opt.param_groups)), s.new_parameter((2, 2), random)
    s.said += f"{i} to group {group}"
    s.on_groups(lambda opt, params: opt.param_groups[group]["params"].append(params[i]))


@action(3)
def drop_parameter(s: Program, random: Random) -> None:
    s.need(not s.sums, s.rule_name != "Subspace", len(s.held) > 1)
    group, at, i = s.place(random)
    s.said += f"{i}"
    s.on_groups(lambda opt, params: opt.state.pop(opt.param_groups[group]["params"].pop(at), None))
    s.model.forget(s.twins[i])


@action(3)
def replace_parameter(s: Program, random: Random) -> None:
    """By one that is larger, as models grow; by one of its shape where a basis must fit."""
    s.need(not s.sums)
    group, at, old = s.place(random)
    shape = tuple(s.twins[old].shape)
    i = s.new_parameter(shape if s.rule_name == "Subspace" or not shape else (shape[0] + 1, *shape[1:]), random)
    s.said += f"{old} by {i} {tuple(s.twins[i].shape)}"

    def replace(opt: Any, params: list[Tensor]) -> None:
        opt.state.pop(params[old], None)
        opt.param_groups[group]["params"][at] = params[i]

    s.on_groups(replace)
    s.model.forget(s.twins[old])


@action(3)
def assign_groups(s: Program, random: Random) -> None:
    """A new list, the same parameters in another order."""
    s.need(not s.sums)

    def assign(opt: Any, params: list[Tensor]) -> None:
        opt.param_groups = [{**g, "params": g["params"][::-1]} for g in opt.param_groups[::-1]]

    s.on_groups(assign)


# ---- checkpoints and copies


@action(4)
def resume(s: Program, random: Random) -> None:
    s.between_steps()
    s.resume()


@action(3)
def save(s: Program, random: Random) -> None:
    s.between_steps()
    s.saved = copy.deepcopy((s.held, s.opt.state_dict(), s.model.opt.state_dict())), s.model.remembered()


@action(4)
def load(s: Program, random: Random) -> None:
    """Back to what was saved, in the same optimizer; counts go on."""
    s.between_steps()
    s.need(s.saved, s.saved and s.saved[0][0] == s.held)
    (_, state, twin), remembered = s.saved
    s.opt.load_state_dict(copy.deepcopy(state))
    s.model.opt.load_state_dict(copy.deepcopy(twin))
    s.model.remember(remembered)


@action(4)
def copy_all(s: Program, random: Random) -> None:
    """The optimizer and its parameters, which are copied without their gradients."""
    s.between_steps()
    deep = random.random() < 0.5
    s.said += "deepcopy" if deep else "pickle"
    both = s.opt, s.params
    s.opt, s.params = copy.deepcopy(both) if deep else pickle.loads(pickle.dumps(both))
    for q in s.twins:
        q.grad = None
