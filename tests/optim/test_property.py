"""Guards random histories of the optimizers against the formulas in float64.

A history is a training loop with parameters of any shape and dtype in several groups, gradients that are zero, missing,
opposed or not finite, micro-batches, schedules, checkpoints, copies, another backend half-way. (What else a program
may do, and the other rules, are in `test_sequences.py`, in float64.) The model of it is `prograd_fast.reference`, and
counts in plain Python. It starts each step from the numbers that the optimizer stored, so that one step's roundings are
compared, not a whole history's; what is lost on the way through a checkpoint is noticed, because the model did not go
that way.
"""

import copy
import io
import math
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, settings
from torch import Tensor

import prograd_fast as pf
from prograd_fast import backends, reference
from prograd_fast.ops import projection, updates
from prograd_fast.ops.common import SCOPES, Scope
from tests.ops.support import BACKENDS, DTYPES, accumulation
from tests.tolerances import assert_close

# ---- histories

# 0-d, one element, empty, one without rows, odd, rows that differ, a vector register and a bit more
SHAPES = [(), (1,), (0,), (0, 3), (7,), (3, 5), (2, 3, 5), (4, 33)]
# eps: a gradient that vanishes but for rounding must not become a step of the size of lr, whose sign is rounding's
ADAMW = {"betas": (0.8, 0.9), "eps": 1e-2}
OPTIMIZERS = [
    (pf.ProGradAdamW, ADAMW),
    (pf.ProGradAdamW, ADAMW | {"amsgrad": True}),
    (pf.ProGradAdamW, ADAMW | {"maximize": True, "fused": True}),
    (pf.ProGradSGD, {}),
    (pf.ProGradSGD, {"momentum": 0.8, "dampening": 0.3}),
    (pf.ProGradSGD, {"momentum": 0.8, "nesterov": True, "maximize": True}),
]
# "opposed": b = -a, of which nothing is left but rounding when λ = 1
TASK = ["normal", "normal", "normal", "missing", "missing", "missing", "zero", "infinite"]
GENERAL = ["normal", "normal", "normal", "missing", "missing", "missing", "opposed", "zero", "infinite", "nan"]
# how the step is taken: in one call, through .grad, or with the task gradient alone
WAYS = ["one call", "one call", "backward", "plain"]
BEFORE = ["nothing", "nothing", "schedule", "save and load", "deepcopy", "change of backend"]


@dataclass(frozen=True)
class Group:
    """Its tensors, and its own settings; λ = None: the optimizer's."""

    tensors: list[tuple[tuple[int, ...], torch.dtype]]
    lr: float
    weight_decay: float
    lambda_: float | None


@dataclass(frozen=True)
class Step:
    """The parts of a step: the time before it, its way, gradients by tensor and batch, whether the counts are read."""

    before: str
    way: str
    batches: list[list[tuple[str, str]]]
    look: bool


@dataclass(frozen=True)
class History:
    """All of it; `seed` for the numbers in the tensors."""

    optimizer: tuple[type[pf.ProGradAdamW] | type[pf.ProGradSGD], dict[str, Any]]
    scope: Scope
    lambda_: float
    tensor_lr: bool
    groups: list[Group]
    steps: list[Step]
    seed: int


@st.composite
def histories(draw: st.DrawFn) -> History:
    lambdas = st.sampled_from([1.0, 0.0, 0.4, 1.7])
    dtypes = draw(st.lists(st.sampled_from(DTYPES), min_size=1, max_size=2))  # few: one group then often shares one
    tensors = st.lists(st.tuples(st.sampled_from(SHAPES), st.sampled_from(dtypes)), min_size=1, max_size=2)
    group = st.builds(Group, tensors, st.sampled_from([0.03, 0.2]), st.sampled_from([0.0, 0.3]), st.none() | lambdas)
    groups = draw(st.lists(group, min_size=1, max_size=3))
    count = sum(len(group.tensors) for group in groups)
    pair = st.tuples(st.sampled_from(TASK), st.sampled_from(GENERAL))
    batch = st.lists(pair, min_size=count, max_size=count).filter(
        lambda pairs: all(any(kind != "missing" for kind in kinds) for kinds in zip(*pairs, strict=True))
    )
    step = st.builds(
        Step, st.sampled_from(BEFORE), st.sampled_from(WAYS), st.lists(batch, min_size=1, max_size=2), st.booleans()
    )
    return History(
        draw(st.sampled_from(OPTIMIZERS)),
        draw(st.sampled_from(SCOPES)),
        draw(lambdas),
        draw(st.booleans()),
        groups,
        draw(st.lists(step, min_size=2, max_size=8)),
        draw(st.integers(0, 2**16)),
    )


def numbers(kind: str, like: Tensor, generator: torch.Generator, task: Tensor | None = None) -> Tensor | None:
    if kind == "missing":
        return None
    x = torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.dtype)
    if kind == "zero":
        x.zero_()
    if kind == "opposed" and task is not None:
        x = -task
    if kind in ("infinite", "nan") and x.numel():
        x.view(-1)[-1] = math.inf if kind == "infinite" else math.nan
    return x


# ---- the optimizer under test


def build(history: History, params: list[Tensor]) -> pf.ProGradAdamW | pf.ProGradSGD:
    cls, options = history.optimizer
    rest = iter(params)
    groups = []
    for group in history.groups:
        lr = torch.tensor(group.lr, dtype=torch.float64) if history.tensor_lr else group.lr
        own = {} if group.lambda_ is None else {"lambda_": group.lambda_}
        groups.append(
            {"params": [next(rest) for _ in group.tensors], "lr": lr, "weight_decay": group.weight_decay} | own
        )
    # noise_floor: in 16 bits a gradient of one number is often enough a hundredth of another
    return cls(groups, lr=0.5, **options, lambda_=history.lambda_, scope=history.scope, noise_floor=0)


def through_a_file(history: History, opt: Any, params: list[Tensor]) -> tuple[Any, list[Tensor]]:
    """A new process: other parameters with the same numbers, another optimizer that loads the state."""
    file = io.BytesIO()
    torch.save((opt.state_dict(), [p.detach() for p in params]), file)
    file.seek(0)
    state, values = torch.load(file, weights_only=True)
    params = [torch.nn.Parameter(value) for value in values]
    groups, rest = [], iter(params)
    for group in history.groups:  # the checkpoint's settings win
        own = {} if group.lambda_ is None else {"lambda_": 0.123}
        groups.append({"params": [next(rest) for _ in group.tensors], "lr": 7.0, "weight_decay": 0.7} | own)
    opt = type(opt)(groups, lr=9.0, lambda_=history.lambda_, scope=history.scope, noise_floor=0)
    opt.load_state_dict(state)
    return opt, params


def added(known: list[Tensor | None], new: list[Tensor | None]) -> list[Tensor | None]:
    return [y if x is None else x if y is None else x + y for x, y in zip(known, new, strict=True)]


def inner(values: list[Tensor], gradients: list[Tensor | None]) -> Tensor:
    """A loss whose gradients are these, exactly."""
    terms = [(p * g).sum().double() for p, g in zip(values, gradients, strict=True) if g is not None]
    return torch.stack(terms).sum()


# ---- the model


def state_names(options: dict[str, Any]) -> list[str]:
    if "betas" not in options:
        return ["momentum_buffer"] if "momentum" in options else []
    return ["exp_avg", "exp_avg_sq"] + ["max_exp_avg_sq"] * options.get("amsgrad", False)


class Model:
    """One step by the formulas in float64, and the counts since construction."""

    def __init__(self, history: History, params: list[Tensor]) -> None:
        self.history = history
        self.options = history.optimizer[1]
        self.group_of = [group for group in history.groups for _ in group.tensors]
        self.lr_factor = 1.0
        self.steps = [0] * len(params)
        self.store(params, [{}] * len(params))
        self.forget_counts()

    def store(self, params: list[Tensor], states: list[dict[str, Tensor]]) -> None:
        """The numbers that the next step starts from."""
        self.params = [p.detach().double().clone() for p in params]
        self.states = [
            {name: state[name].double().clone() for name in state_names(self.options) if name in state}
            for state in states
        ]

    def forget_counts(self) -> None:
        """A checkpoint does not hold them."""
        scope, tensors = self.history.scope, self.params
        units = [1] if scope == "global" else [projection.n_units(p, scope) for p in tensors]
        self.counts = [torch.zeros(n, 4, dtype=torch.int64) for n in units]
        self.cosines = [torch.full((n,), math.nan, dtype=torch.float64) for n in units]

    def count(self, a: list[Tensor], b: list[Tensor], present: list[int]) -> None:
        entries = reference.gram(a, b, self.history.scope)
        whose = [0] if self.history.scope == "global" else present
        for i, rows in zip(whose, entries.split([len(self.counts[i]) for i in whose]), strict=True):
            task, dot, general = rows.unbind(1)
            finite = rows.isfinite().all(1)
            conflicts = reference.conflict_coefficients(rows) < 0
            kinds = [torch.ones_like(finite), conflicts & finite, ~finite, (general == 0) & finite]
            self.counts[i] += torch.stack(kinds, dim=1).long()
            cosine = dot / (task * general).sqrt()
            self.cosines[i] = cosine.where(cosine.isfinite(), math.nan)

    def step(self, task: list[Tensor | None], general: list[Tensor | None], counted: bool) -> None:
        pairs = list(zip(task, general, strict=True))
        present = [i for i, pair in enumerate(pairs) if any(gradient is not None for gradient in pair)]
        zeros = [torch.zeros_like(self.params[i]) for i in present]
        a, b = (
            [zero if pairs[i][k] is None else pairs[i][k].double() for i, zero in zip(present, zeros, strict=True)]
            for k in range(2)
        )
        if counted:
            self.count(a, b, present)
        for position, i in enumerate(present):
            group = self.group_of[i]
            lambda_ = self.history.lambda_ if group.lambda_ is None else group.lambda_
            # "global" needs all of them, whatever λ this one's group has
            g = reference.project(a, b, lambda_, self.history.scope)[position]
            self.steps[i] += 1
            self.update(i, -g if self.options.get("maximize") else g, group)

    def update(self, i: int, g: Tensor, group: Group) -> None:
        zeros = torch.zeros_like(g)
        old = [self.states[i].get(name, zeros) for name in state_names(self.options)]
        shared = {"lr": group.lr * self.lr_factor, "weight_decay": group.weight_decay}
        if "betas" in self.options:
            m, v, *largest = old
            new: tuple[Tensor | None, ...] = updates.adamw(
                self.params[i], g, m, v, largest[0] if largest else None, self.steps[i], **ADAMW, **shared
            )
        else:
            rest = {name: self.options.get(name, 0.0) for name in ("momentum", "dampening", "nesterov")}
            buffer = old[0] if old else None
            new = updates.sgd(self.params[i], g, buffer, **rest, **shared, first=not self.states[i])
        self.params[i] = new[0]
        self.states[i] = dict(zip(state_names(self.options), new[1:], strict=False))


# ---- the comparison


def close_where_finite(actual: Tensor, expected: Tensor, kind: str, dtype: torch.dtype, floor: float) -> None:
    """Not finite at the same places, and near elsewhere; an error is measured against at least `floor`."""
    finite = expected.isfinite()
    assert torch.equal(actual.isfinite(), finite)
    # numbers that are not normal are rounded as coarsely as the smallest normal one
    scale = expected[finite].abs().clamp(min=max(floor, torch.finfo(dtype).tiny))
    assert_close(actual.detach()[finite], expected[finite], kind, dtype, scale)


def largest(x: Tensor | None) -> float:
    return 0.0 if x is None or not x.numel() else float(x.detach().double().nan_to_num(0, 0, 0).abs().max())


def compare(model: Model, opt: Any, params: list[Tensor], task: list[Tensor | None], kind: str) -> None:
    # one Gram sum over tensors of several dtypes is as exact as the least exact of them
    shared = model.history.scope == "global" and any(accumulation(p.dtype) == torch.float32 for p in params)
    for i, p in enumerate(params):
        dtype = torch.float32 if shared and p.dtype == torch.float64 else p.dtype
        # what cancels in a projected gradient leaves roundings of the task gradient
        a = largest(task[i])
        floors = {"exp_avg": 0.2 * a, "exp_avg_sq": 0.1 * a**2, "max_exp_avg_sq": 0.1 * a**2}
        close_where_finite(p, model.params[i], kind, dtype, floor=1.0)
        state = opt.state.get(p, {})
        assert float(state.get("step", model.steps[i])) == model.steps[i]
        assert all(name in state for name in model.states[i])
        for name, expected in model.states[i].items():
            assert state[name].dtype == p.dtype
            close_where_finite(state[name], expected, kind, dtype, floors.get(name, a + largest(p)))


def compare_counts(model: Model, conflict: pf.Conflict) -> None:
    counts = torch.cat(model.counts)
    for name, expected in zip(("steps", "conflicts", "non_finite", "absent"), counts.unbind(1), strict=True):
        assert torch.equal(getattr(conflict, name), expected), name
    cosine = torch.cat(model.cosines)
    assert torch.equal(conflict.cosine.isnan(), cosine.isnan())
    one = torch.ones_like(cosine)  # what a cosine is measured by
    assert_close(conflict.cosine.nan_to_num(), cosine.nan_to_num(), "formula", torch.float32, one)


# a batch of which the two losses reach different tensors, by itself and before another batch
APART = History(
    optimizer=OPTIMIZERS[4],
    scope="tensor",
    lambda_=1.0,
    tensor_lr=False,
    groups=[Group([((7,), torch.float32), ((7,), torch.float32)], lr=0.2, weight_decay=0.0, lambda_=None)],
    steps=[
        Step("nothing", "one call", [[("normal", "missing"), ("missing", "normal")], *batches], look=True)
        for batches in ([], [[("normal", "normal"), ("normal", "normal")]])
    ],
    seed=0,
)


@pytest.fixture(autouse=True)
def _backend_as_before() -> Any:
    before = backends.active()["cpu"]
    yield
    backends.use(before)


@pytest.mark.filterwarnings("ignore:.*backward:UserWarning")  # one steps that never had a general gradient
@settings(
    max_examples=200,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],  # what else it could explain takes a minute
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the backend is set anew by each example
)
@given(histories())
@example(APART)
def test_histories(history: History) -> None:
    backends.use(BACKENDS[-1])
    generator = torch.Generator().manual_seed(history.seed)
    tensors = [tensor for group in history.groups for tensor in group.tensors]
    params = [
        torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        for shape, dtype in tensors
    ]
    opt, model = build(history, params), Model(history, params)
    for step in history.steps:
        match step.before:
            case "schedule":
                model.lr_factor *= 0.7
                for group, own in zip(opt.param_groups, history.groups, strict=True):
                    if history.tensor_lr:
                        group["lr"].fill_(own.lr * model.lr_factor)
                    else:
                        group["lr"] = own.lr * model.lr_factor
            case "save and load":
                opt, params = through_a_file(history, opt, params)
                model.forget_counts()
            case "deepcopy":
                opt, params = copy.deepcopy((opt, params))
            case "change of backend":
                backends.use(BACKENDS[BACKENDS.index(backends.active()["cpu"]) - 1])
        task, general = ([None] * len(params) for _ in range(2))
        opt.zero_grad()
        for batch in step.batches:
            a = [numbers(kind, p, generator) for p, (kind, _) in zip(params, batch, strict=True)]
            task = added(task, a)
            if step.way == "plain":
                inner(params, a).backward()
                continue
            b = [numbers(kind, p, generator, x) for p, x, (_, kind) in zip(params, a, batch, strict=True)]
            general = added(general, b)
            losses = inner(params, a), inner(params, b)
            if batch is not step.batches[-1]:
                with opt.accumulate():
                    opt.backward(*losses)
            elif step.way == "backward":
                opt.backward(*losses)
            else:
                opt.backward_and_update(*losses)
        if step.way != "one call":
            opt.step()
        model.step(task, general, counted=step.way != "plain")
        # the update by itself is torch.optim's, which rounds each intermediate to the parameter's dtype
        compare(model, opt, params, task, "formula" if step.way == "one call" else "torch.optim")
        if step.look or step is history.steps[-1]:
            compare_counts(model, opt.conflict)
        model.store(params, [opt.state.get(p, {}) for p in params])
