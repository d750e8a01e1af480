"""An optimizer and its model side by side: each action goes to both, `check` compares them.

Gradients are small multiples of 1/8 and scales are powers of two. Sums, scaled gradients and inner products of such
numbers are exact in float64 in any order, so that a conflict is one on both sides or on neither.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

import prograd_fast as pf
from prograd_fast import rules
from tests.optim import model

TOLERANCE = 1e-12  # of numbers around 1, in float64, over a whole sequence
LAMBDA = 0.75
# a matrix with rows to test apart, a vector, one number, no number at all in two rows that are none
SHAPES = [(2, 3), (3,), (), (0, 2)]
# eps: a gradient that cancels must not become a step of the size of lr, with a sign that rounding chooses
ADAMW = {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-2, "weight_decay": 0.2, "amsgrad": True}
SGD = {"lr": 0.05, "momentum": 0.75, "weight_decay": 0.1, "nesterov": True}
RMSPROP = {"lr": 0.02, "alpha": 0.9, "eps": 1e-2, "weight_decay": 0.1, "momentum": 0.5}
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "ProGradAdamW": lambda p, **k: pf.ProGradAdamW(p, **ADAMW, **k),
    "ProGradSGD": lambda p, **k: pf.ProGradSGD(p, **SGD, **k),
    "ProGrad": lambda p, **k: pf.ProGrad(torch.optim.RMSprop(p, **RMSPROP), **k),
}
TWINS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "ProGradAdamW": lambda p: torch.optim.AdamW(p, **ADAMW),
    "ProGradSGD": lambda p: torch.optim.SGD(p, **SGD),
    "ProGrad": lambda p: torch.optim.RMSprop(p, **RMSPROP),
}
# what the second of two groups has of its own
OTHERWISE: dict[str, dict[str, Any]] = {
    "ProGradAdamW": {"lr": 0.01, "amsgrad": False},
    "ProGradSGD": {"lr": 0.01, "dampening": 0.25, "nesterov": False},
    "ProGrad": {"lr": 0.01, "momentum": 0.0},
}
ELEMENTS = sum(math.prod(shape) for shape in SHAPES)
BASIS = torch.linalg.qr(torch.randn(ELEMENTS, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))).Q.mT
RULES: dict[str, tuple[rules.Rule | None, model.ProGrad]] = {
    "None": (None, model.ProGrad()),
    "rule ProGrad": (rules.ProGrad(LAMBDA), model.ProGrad()),
    "AGEM": (rules.AGEM(), model.AGEM()),
    "PCGrad": (rules.PCGrad(), model.PCGrad()),
    "GradVac": (rules.GradVac(0.25), model.GradVac(0.25)),
    "CAGrad": (rules.CAGrad(0.4), model.CAGrad(0.4)),
    "Bloop": (rules.Bloop(0.75, 0.5), model.Bloop(0.75, 0.5)),
    "Subspace": (rules.Subspace(BASIS), model.Subspace(BASIS)),
}

Given = Mapping[int, Tensor]  # gradients by the number of the parameter


def eighths(shape: Sequence[int], random: Random) -> Tensor:
    """Multiples of 1/8 between 1 and 3, and their negatives."""
    size = math.prod(shape)
    numbers = [random.choice((-1, 1)) * random.randint(8, 24) / 8 for _ in range(size)]
    return torch.tensor(numbers, dtype=torch.float64).reshape(tuple(shape))


def shortened(params: list[Tensor]) -> None:
    """Few digits, so that what a projection left of a gradient is zero on both sides or on neither."""
    for p in params:
        if p.grad is not None:
            p.grad.mul_(64).add_(0.377).floor_().div_(64)


def loss_of(params: Sequence[Tensor], given: Given) -> Tensor:
    """A loss with the given gradients, exactly."""
    return torch.stack([(params[i] * g).sum() for i, g in given.items()]).sum()


class SideBySide:
    """Both of them, their parameters in the same order, and a scaler for each where there is one.

    Args:
        optimizer: a name of `OPTIMIZERS`.
        rule: a name of `RULES`.
        scope: the unit of the conflict test.
        seed: of the parameters.
        scaled: train with a `GradScaler`.
        one_group: of all parameters, which may then go through one operator.
    """

    def __init__(
        self, optimizer: str, rule: str, scope: str, seed: int = 0, scaled: bool = False, one_group: bool = False
    ) -> None:
        random = Random(seed)
        self.name, self.rule_name, self.scope = optimizer, rule, scope
        self.rule, model_rule = RULES[rule]
        start = [eighths(shape, random) for shape in SHAPES]
        self.params, self.twins = ([torch.nn.Parameter(x.clone()) for x in start] for _ in range(2))
        self.opt = self.make(self.groups(self.params, one_group))
        twin = TWINS[optimizer](self.groups(self.twins, one_group))
        self.model = model.Model(twin, model_rule, scope, pf.optim.NOISE_FLOORS[torch.float64], LAMBDA)
        self.floor: float | None = None
        self.scaler, self.twin_scaler = (
            torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3, enabled=scaled) for _ in range(2)
        )
        for scaler in (self.scaler, self.twin_scaler):
            scaler.scale(torch.ones(()))  # which makes the scale
        self.scaled = scaled

    def groups(self, params: Sequence[Tensor], one: bool) -> list[dict[str, Any]]:
        """One group, or two with different settings; only ProGrad's own rule takes another λ for a group."""
        if one:
            return [{"params": list(params)}]
        own = OTHERWISE[self.name] | ({} if self.rule else {"lambda_": 0.5})
        return [{"params": list(params[:2])}, {"params": list(params[2:]), **own}]

    def make(self, groups: Any, **options: Any) -> Any:
        given = {"rule": self.rule} if self.rule else {"lambda_": LAMBDA}
        return OPTIMIZERS[self.name](groups, scope=self.scope, **given, **options)

    @property
    def held(self) -> list[int]:
        """The numbers of the optimizer's parameters."""
        numbers = {q: i for i, q in enumerate(self.twins)}
        return [numbers[q] for q in self.model.params]

    def by_twin(self, given: Given) -> dict[Tensor, Tensor]:
        return {self.twins[i]: g for i, g in given.items()}

    # ---- actions

    def both(self, on_model: Callable[[], Any], on_optimizer: Callable[[], Any]) -> bool:
        """Do it on both; what is an error of the model must be one of the optimizer, and False here."""
        try:
            on_model()
        except (RuntimeError, ValueError) as error:
            with pytest.raises(type(error)):
                on_optimizer()
            return False
        on_optimizer()
        return True

    @property
    def with_scaler(self) -> dict[str, Any]:
        return {"scaler": self.scaler} if self.scaled else {}

    @property
    def scale(self) -> float | None:
        return self.twin_scaler.get_scale() if self.scaled else None

    def losses(self, a: Given, b: Given) -> list[Tensor]:
        return [loss_of(self.params, given) for given in (a, b) if given]

    def backward(self, a: Given, b: Given, **options: Any) -> None:
        held = [p.grad for p in self.params]
        losses, scale = self.losses(a, b), self.scale
        self.both(
            lambda: self.model.backward(self.by_twin(a), self.by_twin(b), scale),
            lambda: self.opt.backward(*losses, **self.with_scaler, **options),
        )
        assert all(p.grad is x for p, x in zip(self.params, held, strict=True) if x is not None), ".grad was rebound"

    def plain_backward(self, a: Given) -> None:
        for params, scaler in ((self.params, self.scaler), (self.twins, self.twin_scaler)):
            scaler.scale(loss_of(params, a)).backward()

    def backward_and_update(self, a: Given, b: Given) -> None:
        losses, scale = self.losses(a, b), self.scale
        step = (lambda: self.twin_scaler.step(self.model.opt)) if self.scaled else None
        done = self.both(
            lambda: self.model.backward_and_update(self.by_twin(a), self.by_twin(b), scale, step),
            lambda: self.opt.backward_and_update(*losses, **self.with_scaler),
        )
        if self.scaled and done:
            self.update_scalers()

    def step_on_pair(self, a: Given, b: Given, kind: type = tuple) -> None:
        """`step` with a closure that returns both losses."""
        returned = kind(self.losses(a, b))
        self.both(
            lambda: self.model.backward_and_update(self.by_twin(a), self.by_twin(b)),
            lambda: self.opt.step(lambda: returned),
        )

    def step(self) -> None:
        if self.scaled:
            self.scaler.step(self.opt)
            self.twin_scaler.step(self.model.opt)
            self.update_scalers()
        else:
            self.both(self.model.step, self.opt.step)

    def update_scalers(self) -> None:
        self.scaler.update()
        self.twin_scaler.update()

    def unscale(self) -> None:
        self.scaler.unscale_(self.opt)
        self.twin_scaler.unscale_(self.model.opt)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.opt.zero_grad(set_to_none)
        self.model.zero_grad(set_to_none)

    def on_both(self, change: Callable[[list[Tensor]], Any]) -> None:
        """What a user does to parameters or `.grad`, done to both."""
        with torch.no_grad():
            change(self.params)
            change(self.twins)

    def on_groups(self, change: Callable[[Any, list[Tensor]], Any]) -> None:
        """What a user does to an optimizer and its groups, done to both."""
        change(self.opt, self.params)
        change(self.model.opt, self.twins)

    def new_parameter(self, shape: tuple[int, ...], random: Random) -> int:
        new = eighths(shape, random)
        for params in (self.params, self.twins):
            params.append(torch.nn.Parameter(new.clone()))
        return len(self.params) - 1

    def set_floor(self, floor: float | None) -> None:
        self.floor = self.opt.noise_floor = floor
        self.model.floor = pf.optim.NOISE_FLOORS[torch.float64] if floor is None else floor

    def resume(self) -> None:
        """Another optimizer of the same parameters, with other settings, loads the state; it counts from 0."""
        states = copy.deepcopy((self.opt.state_dict(), self.model.opt.state_dict()))
        other = {"lr": 7.0} | ({} if self.rule else {"lambda_": 0.125})
        groups, twins = (
            [{"params": list(g["params"]), **other} for g in opt.param_groups] for opt in (self.opt, self.model.opt)
        )
        self.opt, self.model.opt = self.make(groups, noise_floor=self.floor), TWINS[self.name](twins)
        for opt, state in zip((self.opt, self.model.opt), states, strict=True):
            opt.load_state_dict(state)
        self.model.remember(self.model.remembered())
        self.model.counts = {}

    # ---- the comparison

    def check(self) -> None:
        for i, (p, q) in enumerate(zip(self.params, self.twins, strict=True)):
            close(p.detach(), q.detach(), f"parameter {i}")
            assert (p.grad is None) == (q.grad is None), f".grad of parameter {i}: expected {q.grad}, got {p.grad}"
            if p.grad is not None:
                close(p.grad, q.grad, f".grad of parameter {i}")
        assert self.opt.noise_floor == self.floor, "noise_floor"
        conflict, counts = self.opt.conflict, self.model.conflict()
        for name in ("steps", "conflicts", "non_finite", "absent"):
            actual, expected = getattr(conflict, name).tolist(), [getattr(count, name) for count in counts]
            assert actual == expected, f"conflict.{name}: expected {expected}, got {actual}"
        cosine = torch.tensor([count.cosine for count in counts], dtype=torch.float64)
        close(conflict.cosine.double(), cosine, "conflict.cosine", 1e-6)  # it is stored in float32
        if self.scaled:
            assert self.scaler.get_scale() == self.twin_scaler.get_scale(), "scale"


def close(actual: Tensor, expected: Tensor, name: str, tolerance: float = TOLERANCE) -> None:
    """The same but for roundings, and not finite at the same places."""
    assert actual.shape == expected.shape, f"{name}: expected shape {expected.shape}, got {actual.shape}"
    if torch.equal(actual, expected):
        return
    size = expected.abs().nan_to_num(0, 0, 0).clamp(min=1) * tolerance
    same = (actual == expected) | ((actual - expected).abs() <= size) | (actual.isnan() & expected.isnan())
    assert bool(same.all()), f"{name}: expected {expected.tolist()}, got {actual.tolist()}"
