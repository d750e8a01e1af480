"""The contract of two gradients, as slow as it is plain: what the optimizers are compared with.

`Model` is written from the definition, in float64, over the vectors themselves: no Gram entries, no coefficients, no
kernels, nothing of `prograd_fast`. Its update is torch.optim's own on twin parameters. Where a rounding decides (the
sign of an inner product that is zero but for it, say) there is no one right answer, and it raises `AmbiguousError`.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor

Gradients = Mapping[Tensor, Tensor]  # by parameter, of those that a loss reaches
Place = tuple[Tensor, int | EllipsisType]  # a row of a parameter, or all of it
TINY = 1e-9  # less than this of numbers around 1 may be what roundings have left


class AmbiguousError(Exception):
    """Roundings decide; nothing can be compared from here on."""


def settled(x: Tensor) -> Tensor:
    """A number that is zero exactly or is not zero for certain."""
    if 0 < float(x.abs()) < TINY:
        raise AmbiguousError
    return x


# ---- the rules: g of one unit from its two vectors, and what they keep


@dataclass
class Unit:
    """One conflict test."""

    a: Tensor
    b: Tensor
    task: Tensor  # a, or what the rule makes of all of a
    lambda_: Tensor  # of each element: a unit may lie in several groups
    memory: dict[str, float]  # what the rule keeps of it
    places: list[Place]
    finite: bool = False
    known: bool = False  # b is finite and more than rounding
    average: Tensor | None = None  # Bloop's m
    every: tuple[Tensor, Tensor] | None = None  # a and b of all units together, without what is rounding

    def is_known(self, floor: float) -> bool:
        """Whether b is more than rounding."""
        norm, least = float(self.b.norm()), floor * float(self.a.norm())
        if norm and 0.5 * least < norm < 2 * least:
            raise AmbiguousError
        if norm > least:
            settled(self.a.norm())
            settled(self.a @ self.b / norm)
        return norm > least


class ProGrad:
    """a without its part against b."""

    decay: float | None = None  # of an average of a that the rule keeps

    def whole(self, a: Tensor) -> Tensor:
        """What the rule makes of all of a before units are looked at."""
        return a

    def step(self, u: Unit) -> Tensor:
        if not u.a @ u.b < 0:
            return u.a
        return u.a - u.lambda_ * (u.a @ u.b) / (u.b @ u.b) * u.b


class AGEM(ProGrad):
    """The same with one test over everything."""

    def step(self, u: Unit) -> Tensor:
        a, b = u.every
        dot = settled(a @ b / b.norm())
        return u.a - dot / b.norm() * u.b if -math.inf < dot < 0 else u.a


class PCGrad(ProGrad):
    """The sum of both, each without its part against the other."""

    def step(self, u: Unit) -> Tensor:
        dot = u.a @ u.b
        if not dot < 0:
            return u.a + u.b
        return u.a - dot / (u.b @ u.b) * u.b + u.b - dot / (u.a @ u.a) * u.a


@dataclass
class GradVac(ProGrad):
    """The sum of both, each turned towards the other up to their usual cosine."""

    beta: float

    def step(self, u: Unit) -> Tensor:
        target = u.memory.get("target", 0.0)
        a, b = u.a.norm(), u.b.norm()
        if a == 0:
            return u.b
        cosine = float(u.a @ u.b / a / b)
        if 1 - cosine**2 < 1e-6 and abs(cosine) != 1:  # half of the digits of the sine are gone
            raise AmbiguousError
        turn = target * math.sqrt(1 - cosine**2) - cosine * math.sqrt(1 - target**2) if cosine < target else 0.0
        turn /= math.sqrt(1 - target**2)
        u.memory["target"] = (1 - self.beta) * target + self.beta * cosine
        return u.a + a / b * turn * u.b + u.b + b / a * turn * u.a


@dataclass
class CAGrad(ProGrad):
    """The mean of both, moved by c of its length to where the loss that gains least gains most; c < 1.

    The move is along a combination of both. Where both losses can gain the same, (a - b) · (mean + move) = 0; else it
    is along a or along b.
    """

    c: float

    def step(self, u: Unit) -> Tensor:
        mean, across = (u.a + u.b) / 2, u.a - u.b
        radius, apart = self.c * mean.norm(), across.norm()
        if radius == 0 or apart == 0:
            return mean + self.c * mean
        along = across / apart
        foot = u.a - (u.a @ along) * along  # the point of the line through a and b that is nearest to 0
        cosine = -(mean @ along) / radius  # between `along` and the direction that is sought
        if (
            cosine.abs() < 1 and 0 < foot.norm() < 1e-2 * apart
        ):  # nearly in one line: Gram entries do not tell how nearly
            raise AmbiguousError
        t = foot.norm() * cosine / (1 - cosine**2).sqrt() if cosine.abs() < 1 else cosine * math.inf
        target = u.a if t >= u.a @ along else u.b if t <= u.b @ along else foot + t * along
        return mean + radius * target / target.norm() if target.any() else mean


class Bloop(ProGrad):
    """a, and of b what the average of a does not mind."""

    def __init__(self, decay: float, weight: float) -> None:
        self.decay, self.weight = decay, weight

    def step(self, u: Unit) -> Tensor:
        m = u.average
        settled(m.norm())
        return u.a + self.weight * (u.b - (u.b @ m) / (m @ m) * m if m.any() else u.b)


@dataclass
class Subspace(ProGrad):
    """What of a lies in the span of the basis; b plays no part."""

    basis: Tensor

    def whole(self, a: Tensor) -> Tensor:
        if len(a) != self.basis.shape[1]:
            raise ValueError("basis: expected a column for each element that has a gradient")
        return self.basis.mT @ (self.basis @ a)

    def step(self, u: Unit) -> Tensor:
        return u.task


# ---- the model


@dataclass
class Count:
    """What `conflict` tells of one unit."""

    cosine: float = math.nan
    steps: int = 0
    conflicts: int = 0
    non_finite: int = 0
    absent: int = 0

    def add(self, unit: Unit) -> None:
        dot = unit.a @ unit.b
        self.steps += 1
        self.conflicts += unit.known and bool(dot < 0)
        self.non_finite += not unit.finite
        self.absent += unit.finite and not unit.known
        self.cosine = float(dot / unit.a.norm() / unit.b.norm()) if unit.known and unit.a.any() else math.nan


def units(params: Iterable[Tensor], scope: str) -> dict[Any, list[Place]]:
    """The units of some parameters by a key of their own, and where each lies."""
    if scope == "global":
        return {"all": [(p, ...) for p in params]}
    places = [(p, i) for p in params for i in (range(len(p)) if scope == "row" and p.dim() else [...])]
    return {place: [place] for place in places}


def flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([torch.zeros(0, dtype=torch.float64), *(x.flatten() for x in tensors)])


def joined(x: Gradients, places: Iterable[Place]) -> Tensor:
    return flat(x[p][i] for p, i in places)


def added(x: Gradients, y: Gradients) -> dict[Tensor, Tensor]:
    return {p: x[p] + y[p] if p in x and p in y else x.get(p, y.get(p)).clone() for p in {**x, **y}}


class Model:
    """One optimizer of two gradients.

    Args:
        opt: a torch.optim optimizer of float64 parameters, which makes the updates.
        rule: how the gradients are combined.
        scope: "tensor", "row" or "global".
        floor: b is rounding where ‖b‖ ≤ floor · ‖a‖.
        lambda_: λ of groups without one.
    """

    def __init__(
        self, opt: torch.optim.Optimizer, rule: ProGrad, scope: str, floor: float, lambda_: float = 1.0
    ) -> None:
        self.opt, self.rule, self.scope, self.floor, self.lambda_ = opt, rule, scope, floor, lambda_
        self.sums: tuple[dict[Tensor, Tensor], dict[Tensor, Tensor]] = {}, {}
        self.depth = 0
        self.averages: dict[Tensor, Tensor] = {}
        self.memory: dict[Any, dict[str, float]] = {}
        self.counts: dict[Any, Count] = {}

    @property
    def params(self) -> list[Tensor]:
        return [p for group in self.opt.param_groups for p in group["params"]]

    def backward(self, a: Gradients, b: Gradients, scale: float | None = None) -> None:
        """Add the projection of both to `.grad`, times the scale of a scaler; a, b: gradients without that scale."""
        if self.depth:
            self.sums = added(self.sums[0], a), added(self.sums[1], b)
            return
        for p, g in self.projection(a, b, scale).items():
            p.grad = g if p.grad is None else p.grad + g

    def backward_and_update(
        self, a: Gradients, b: Gradients, scale: float | None = None, step: Callable[[], Any] | None = None
    ) -> None:
        """Do all at once; what `.grad` holds is a task gradient. `step`: of a scaler, which looks at `.grad` first."""
        if self.depth:
            raise RuntimeError("backward_and_update: inside of accumulate()")
        held = {p: p.grad / (scale or 1) for p in self.params if p.grad is not None}
        for p, g in self.projection(added(held, a), b, scale).items():
            p.grad = g
        (step or self.opt.step)()
        for p in self.params:
            p.grad = None

    def step(self) -> None:
        """Update with `.grad`, whatever is in it."""
        if any(self.sums):
            raise RuntimeError("step: sums of accumulate() are there")
        self.opt.step()

    def projection(self, a: Gradients, b: Gradients, scale: float | None) -> dict[Tensor, Tensor]:
        """The definition: g of every parameter that is reached, from the sums with a and b, unit by unit."""
        a, b = added(self.sums[0], a), added(self.sums[1], b)
        reached = [p for p in self.params if p in a or p in b]
        a, b, g = ({p: x.get(p, torch.zeros_like(p)) for p in reached} for x in (a, b, {}))
        for key, unit in self.compared(a, b).items():
            step = self.rule.step(unit) if unit.known else unit.task
            if scale is not None:  # the scaler finds what is not finite in `.grad` alone
                step = scale * (step if unit.finite else step * math.nan)
            for (p, i), part in zip(unit.places, step.split([p[i].numel() for p, i in unit.places]), strict=True):
                g[p][i] = part.view(p[i].shape)
            self.counts.setdefault(key, Count()).add(unit)
        self.drop_sums()
        return g

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.drop_sums()
        self.opt.zero_grad(set_to_none)

    @contextmanager
    def accumulate(self) -> Any:
        self.depth += 1
        try:
            yield
        except BaseException:
            self.drop_sums()
            raise
        finally:
            self.depth -= 1

    def drop_sums(self) -> None:
        self.sums = {}, {}

    def conflict(self) -> list[Count]:
        """Of the units of all parameters that there are, in their order."""
        return [self.counts.get(key, Count()) for key in units(self.params, self.scope)]

    def remembered(self) -> tuple[dict[Tensor, Tensor], dict[Any, dict[str, float]]]:
        """What a checkpoint has of the rule: it lies in the state of parameters, where there is one."""
        there = {p for p in self.params if self.opt.state.get(p)}
        averages = {p: m.clone() for p, m in self.averages.items() if p in there}
        keys = [key for key in self.memory if (there if key == "all" else key[0] in there)]
        return averages, {key: dict(self.memory[key]) for key in keys}

    def remember(self, kept: tuple[dict[Tensor, Tensor], dict[Any, dict[str, float]]]) -> None:
        """Go on from there."""
        self.averages, self.memory = dict(kept[0]), {key: dict(values) for key, values in kept[1].items()}

    def forget(self, p: Tensor) -> None:
        """What the rule remembers of a parameter goes with its state."""
        self.averages.pop(p, None)
        for key in [key for key in self.memory if key != "all" and key[0] is p]:
            del self.memory[key]

    # ---- parts of `projection`

    def compared(self, a: Gradients, b: Gradients) -> dict[Any, Unit]:
        """All units; what the rule remembers of a is brought up to date."""
        every = [(p, ...) for p in a]
        task = self.rule.whole(joined(a, every)).split([p.numel() for p in a])
        task = {p: x.view(p.shape) for p, x in zip(a, task, strict=True)}
        lambdas = {p: group.get("lambda_", self.lambda_) for group in self.opt.param_groups for p in group["params"]}
        lambdas = {p: torch.full_like(a[p], lambdas[p]) for p in a}
        found = {}
        for key, at in units(a, self.scope).items():
            memory = self.memory.setdefault(key, {})
            unit = Unit(joined(a, at), joined(b, at), joined(task, at), joined(lambdas, at), memory, at)
            unit.finite = bool((unit.a @ unit.b).isfinite() and (unit.b @ unit.b).isfinite())
            unit.known = unit.finite and unit.is_known(self.floor)
            found[key] = unit
        if self.rule.decay is not None:
            self.average(a, b)
            for unit in found.values():
                unit.average = joined(self.averages, unit.places)
        every_a = flat(unit.a for unit in found.values())
        every_b = flat(0 * unit.b if unit.finite and not unit.known else unit.b for unit in found.values())
        for unit in found.values():
            unit.every = every_a, every_b
        return found

    def average(self, a: Gradients, b: Gradients) -> None:
        """Bloop's m ← decay · m + (1 - decay) · a, from the first a that is not 0, where a and b are finite."""
        for p in a:
            m = self.averages.setdefault(p, torch.zeros_like(a[p]))
            if a[p].isfinite().all() and b[p].isfinite().all():
                self.averages[p] = self.rule.decay * m + (1 - self.rule.decay) * a[p] if m.any() else a[p].clone()
