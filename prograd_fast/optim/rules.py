"""Projection rules: from the two gradients' norms and inner product to the step g = α·a + β·b.

A rule is a frozen dataclass of hyper-parameters. An optimizer calls it in two steps, on unscaled gradients:

    task, general = rule.prepare(task, general, states, scope)     # most rules change nothing here
    entries = floored(gram(task, general, scope), noise_floor)     # (U, 3): ‖a‖², ⟨a,b⟩, ‖b‖²
    coefficients = rule(entries, state)                            # (U, 2): α, β
    g = α·a + β·b for each unit

Memory belongs to the optimizer, in `state[p]`, so that checkpoints and copies have it. A rule names what it keeps:
`unit_memory`, one number for each unit, and `parameter_memory`, tensors of the parameter's shape. All begin at zero.
Everything is done with tensors on the gradients' device; nothing waits for it.

ProGrad and A-GEM respect b but do not follow it: g = a where they do not conflict. PCGrad and GradVac (a sum), CAGrad
(a mean) and Bloop (b with a weight) step along b too. A unit whose general gradient is zero, below the noise floor or
not finite gets (1, 0), the plain task gradient, from every rule.
"""

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prograd_fast.ops.common import Scope, accumulation_dtype
from prograd_fast.ops.projection import combine, prograd_coefficients
from prograd_fast.optim.shards import WHOLE, Whole

State = MutableMapping[str, Tensor]


@dataclass(frozen=True)
class Rule:
    """The interface of all rules.

    Attributes:
        unit_memory: names of what it keeps for each unit, a number.
        parameter_memory: names of what it keeps for each parameter, a tensor of its shape.
    """

    unit_memory: ClassVar[tuple[str, ...]] = ()
    parameter_memory: ClassVar[tuple[str, ...]] = ()

    @property
    def prepares(self) -> bool:
        """Whether `prepare` gives other gradients than it takes."""
        return type(self).prepare is not Rule.prepare

    def prepare(
        self,
        task: Sequence[Tensor],
        general: Sequence[Tensor],
        states: Sequence[State],
        scope: Scope,
        scale: Tensor | None = None,
        parts: Whole = WHOLE,
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """The gradients that the Gram entries are taken from and that are combined; new tensors where they change.

        Args:
            task: gradients a, one for each parameter.
            general: gradients b of the same shapes.
            states: `parameter_memory` of each parameter; written to.
            scope: "tensor", "row" or "global"; see `prograd_fast.reference.gram`.
            scale: what both gradients are multiplied by, 0-d, or None; a memory must be free of it.
            parts: what the tensors are parts of, where other ranks have the rest of them: asked about whole tensors.
        """
        return task, general

    def __call__(self, entries: Tensor, state: State) -> Tensor:
        """Coefficients (α, β) of a and b.

        Args:
            entries: (U, 3) ‖a‖², ⟨a,b⟩, ‖b‖² of each unit, float32 or float64; zeros for one without gradients.
            state: `unit_memory` of each unit, (U,); written to.

        Returns:
            (U, 2), of the entries' dtype and device.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class ProGrad(Rule):
    """g = a - λ · min(0, ⟨a,b⟩) / ‖b‖² · b: without what works against b.

    Source: Zhu et al., Prompt-aligned Gradient for Prompt Tuning, arXiv:2205.14865, eq. 5.

    Args:
        lambda_: λ ≥ 0: 1 removes the whole conflict (default: 1.0).
    """

    lambda_: float = 1.0

    def __post_init__(self) -> None:
        _check("lambda_", self.lambda_, 0.0, float("inf"), "1.0 removes the whole conflict")

    def __call__(self, entries: Tensor, state: State) -> Tensor:
        """α = 1, β = -λ · min(0, ⟨a,b⟩) / ‖b‖²."""
        return prograd_coefficients(entries, self.lambda_)


@dataclass(frozen=True)
class AGEM(Rule):
    """g = a - ⟨a,b⟩ / ‖b‖² · b if ⟨a,b⟩ < 0, else a, over all parameters together whatever the scope.

    Source: Chaudhry et al., Efficient Lifelong Learning with A-GEM, arXiv:1812.00420, eq. 11, where b is the gradient
    on a batch from the episodic memory.
    """

    def __call__(self, entries: Tensor, state: State) -> Tensor:
        """ProGrad's with λ = 1, the same for every unit that has a general gradient."""
        coefficients = prograd_coefficients(entries.sum(dim=0, keepdim=True))
        return torch.where(entries[:, 2:] == 0, entries.new_tensor([1.0, 0.0]), coefficients)


@dataclass(frozen=True)
class PCGrad(Rule):
    """The sum of both gradients, each without its part against the other.

        g = (a - min(0, ⟨a,b⟩) / ‖b‖² · b) + (b - min(0, ⟨a,b⟩) / ‖a‖² · a)

    Unlike ProGrad, b is not only respected but followed: g = a + b where they agree. With two gradients the paper's
    random order makes no difference. `torchjd.aggregation.PCGrad` of [a; b] gives the same.

    Source: Yu et al., Gradient Surgery for Multi-Task Learning, arXiv:2001.06782, algorithm 1.
    """

    def __call__(self, entries: Tensor, state: State) -> Tensor:
        """α = 1 - min(0, ⟨a,b⟩) / ‖a‖², β = 1 - min(0, ⟨a,b⟩) / ‖b‖²."""
        a, dot, b = entries.unbind(1)
        conflict = dot.clamp(max=0)
        return _both_or_task_alone(entries, 1 - _quotient(conflict, a), 1 - _quotient(conflict, b))


@dataclass(frozen=True)
class GradVac(Rule):
    """The sum of both gradients, each turned towards the other until their cosine is what it usually is.

        φ = cos(a, b);   w(x, y) = ‖x‖ (φ̂ √(1-φ²) - φ √(1-φ̂²)) / (‖y‖ √(1-φ̂²)) if φ < φ̂, else 0
        g = (a + w(a, b) b) + (b + w(b, a) a);   then φ̂ ← (1-β) φ̂ + β φ, from 0

    φ̂ is kept as "target_cosine". β = 0 keeps it at 0, which is PCGrad.
    `torchjd.aggregation.GradVac` of [a; b] gives the same (up to the eps that it adds to its denominators).

    Source: Wang et al., Gradient Vaccine, arXiv:2010.05874, eq. 2-3, algorithm 1.

    Args:
        beta: β, how fast the target follows, 0 ... 1 (default: 0.01, as in the paper).
    """

    beta: float = 0.01

    unit_memory: ClassVar[tuple[str, ...]] = ("target_cosine",)

    def __post_init__(self) -> None:
        _check("beta", self.beta, 0.0, 1.0, "0.01 is the paper's")

    def __call__(self, entries: Tensor, state: State) -> Tensor:
        """α = 1 + w(b, a), β = 1 + w(a, b); moves the target."""
        a, dot, b = entries.unbind(1)
        target = state.get("target_cosine", torch.zeros_like(dot)).to(dot)
        cosine = _quotient(_quotient(dot, a.sqrt()), b.sqrt()).clamp(-1, 1)
        sine, target_sine = (1 - cosine**2).sqrt(), (1 - target**2).sqrt()
        turn = torch.where(cosine < target, target * sine - cosine * target_sine, 0.0)
        turn = _quotient(turn, target_sine)
        known = _usable(a, b) & dot.isfinite()
        state["target_cosine"] = torch.where(known, torch.lerp(target, cosine, self.beta), target)
        ratio = _quotient(a, b).sqrt()
        return _both_or_task_alone(entries, 1 + _quotient(turn, ratio), 1 + turn * ratio)


@dataclass(frozen=True)
class CAGrad(Rule):
    """The mean of both gradients, moved to where the loss that improves least improves most.

        g₀ = (a + b)/2;   w = argmin over 0 ≤ w ≤ 1 of ⟨g_w, g₀⟩ + c ‖g₀‖ ‖g_w‖  with g_w = w a + (1-w) b
        g = g₀ + c ‖g₀‖ / ‖g_w‖ · g_w

    With two gradients the minimum has a closed form. The objective is q·w + c‖g₀‖·√(d (w-w₀)² + h²) and a constant,
    with d = ‖a-b‖², q = (‖a‖²-‖b‖²)/2, w₀ = ⟨b, b-a⟩/d where the line through a and b is nearest to 0, and h that
    distance; its derivative vanishes at w₀ - q h / √(d (c²‖g₀‖² d - q²)), or nowhere, and then an end is the minimum.

    The step has the size of a mean, half that of the sum: c = 0 gives (a + b)/2. `torchjd.aggregation.CAGrad` of
    [a; b] gives the same, from a numerical solver.

    Source: Liu et al., Conflict-Averse Gradient Descent, arXiv:2110.14048, algorithm 1 (without the rescaling by
    1/(1+c²) that the authors' code offers).

    Args:
        c: radius of the search around g₀ in units of ‖g₀‖, c ≥ 0; below 1 it converges to a minimum of the mean loss
            (default: 0.5).
    """

    c: float = 0.5

    def __post_init__(self) -> None:
        _check("c", self.c, 0.0, float("inf"), "the paper uses 0.2 ... 0.5")

    def __call__(self, entries: Tensor, state: State) -> Tensor:
        """α = 1/2 + c‖g₀‖/‖g_w‖ · w, β = 1/2 + c‖g₀‖/‖g_w‖ · (1-w)."""
        largest = entries[:, ::2].amax(dim=1)
        # only the directions and the ratio of the lengths matter: products of squares would overflow
        a, dot, b = (_quotient(entry, largest) for entry in entries.unbind(1))
        d, q = (a - 2 * dot + b).clamp(min=0), (a - b) / 2
        radius = self.c * ((a + 2 * dot + b).clamp(min=0).sqrt() / 2)
        nearest = _quotient(b - dot, d)
        distance = (_quotient((a * b - dot**2).clamp(min=0), d)).sqrt()
        curvature = d * (radius**2 * d - q**2)
        w = torch.where(
            curvature > 0,
            nearest - q * distance / curvature.clamp(min=0).sqrt(),
            # no stationary point: the objective rises or falls all the way, or (a = -b) does not depend on w
            torch.where(q > 0, 0.0, 1.0),
        ).clamp(0, 1)
        length = (w**2 * a + 2 * w * (1 - w) * dot + (1 - w) ** 2 * b).clamp(min=0).sqrt()
        pull = _quotient(radius, length)
        return _both_or_task_alone(entries, 0.5 + pull * w, 0.5 + pull * (1 - w))


@dataclass(frozen=True)
class Bloop(Rule):
    """g = a + λ (b - ⟨b,m⟩ / ‖m‖² · m) with m an average of a: b is followed as far as it does not matter to a.

    The task loss decides; the general loss chooses among what leaves the task loss as it is, to first order. Here it is
    the general gradient that is projected. m ← decay·m + (1-decay)·a, from the first a that is not zero, is kept as
    "task_average"; it stays as it is where a or b is not finite. Use scope="global" for one projection over all
    parameters, as the paper.

    Source: Hsieh et al., Careful with that Scalpel, arXiv:2402.02998, eq. 5-7; apple/ml-bloop. (There the denominator
    is ‖m‖² + 1e-7; here a vanishing m leaves b as it is.)

    Args:
        decay: of the average, 0 ≤ decay < 1; 0 projects on a itself (default: 0.9, the authors' ema=0.1).
        lambda_: λ ≥ 0, weight of the general gradient (default: 0.1, as the authors' code).
    """

    decay: float = 0.9
    lambda_: float = 0.1

    parameter_memory: ClassVar[tuple[str, ...]] = ("task_average",)

    def __post_init__(self) -> None:
        _check("decay", self.decay, 0.0, 1.0, "the authors use 0.9", below_high=True)
        _check("lambda_", self.lambda_, 0.0, float("inf"), "the authors use 0.1")

    def prepare(
        self,
        task: Sequence[Tensor],
        general: Sequence[Tensor],
        states: Sequence[State],
        scope: Scope,
        scale: Tensor | None = None,
        parts: Whole = WHOLE,
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Take from b its part along the average of a."""
        before = [state.get("task_average", torch.zeros_like(a)) for a, state in zip(task, states, strict=True)]
        bad = [~(a.isfinite().all() & b.isfinite().all()) for a, b in zip(task, general, strict=True)]
        flags = parts.any([*(m.any() for m in before), *bad])
        for a, m, state, begun, lost in zip(task, before, states, flags[: len(task)], flags[len(task) :], strict=True):
            unscaled = a if scale is None else (a.to(accumulation_dtype(a)) / scale.to(a.device)).to(a.dtype)
            after = torch.where(begun, torch.lerp(unscaled, m, self.decay), unscaled)
            state["task_average"] = torch.where(lost, m, after).detach()
        averages = [state["task_average"] for state in states]
        entries = parts.gram(averages, general, scope)  # ‖m‖², ⟨m,b⟩, ‖b‖²
        beta = -_quotient(entries[:, 1], entries[:, 0])
        beta = torch.where(beta.isfinite(), beta, 0.0)
        coefficients = parts.split(torch.stack([torch.ones_like(beta), beta], dim=1), task, scope)
        return task, [combine(b, m, c).to(b.dtype) for b, m, c in zip(general, averages, coefficients, strict=True)]

    def __call__(self, entries: Tensor, state: State) -> Tensor:
        """α = 1, β = λ."""
        one = torch.ones_like(entries[:, 0])
        return _both_or_task_alone(entries, one, self.lambda_ * one)


@dataclass(frozen=True, eq=False)
class Subspace(Rule):
    """g = Uᵀ U a: only what lies in the span of the rows of U; the general gradient plays no part.

    All parameters together are one vector, flattened in the order of the parameter groups.

    Source: Ma et al., Understanding and Mitigating Overfitting in Prompt Tuning for Vision-Language Models,
    arXiv:2211.02219 (SubPT); machengcheng2016/Subspace-Prompt-Learning.

    Args:
        basis: U, (r, n) with orthonormal rows, n elements in all parameters, on their device.
    """

    basis: Tensor

    def __post_init__(self) -> None:
        u = self.basis
        if u.dim() != 2 or not u.is_floating_point():
            raise ValueError(f"basis: expected a float matrix (r, n), got {u.dtype} of shape {tuple(u.shape)}.")
        gap = (u.double() @ u.double().mT - torch.eye(len(u), device=u.device)).abs().max() if len(u) else 0.0
        if not gap < 1e-3:  # rows rounded to 16 bits are still orthonormal
            raise ValueError(
                f"basis: expected orthonormal rows, got rows whose products differ by {float(gap):.1g} from those of "
                "such. Use Subspace.of_trajectory, or torch.linalg.qr(matrix.mT).Q.mT."
            )

    @classmethod
    def of_trajectory(cls, points: Tensor, rank: int) -> "Subspace":
        """The principal directions of parameters at several times, as SubPT takes them from early training.

        Args:
            points: (times, n), or (times, ...) to be flattened: all parameters, one row for each time.
            rank: r, at most times - 1: what is left when the mean is taken out.

        Raises:
            ValueError: there are not enough points for the rank.
        """
        if not 1 <= rank < len(points):
            raise ValueError(f"rank: expected 1 ... {len(points) - 1} for {len(points)} points, got {rank}.")
        flat = points.flatten(1)
        flat = flat - flat.mean(dim=0)
        return cls(torch.linalg.svd(flat, full_matrices=False).Vh[:rank])

    def prepare(
        self,
        task: Sequence[Tensor],
        general: Sequence[Tensor],
        states: Sequence[State],
        scope: Scope,
        scale: Tensor | None = None,
        parts: Whole = WHOLE,
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Project a on the span of the basis."""
        whole = parts.gathered(task)
        sizes = [a.numel() for a in whole]
        if sum(sizes) != self.basis.shape[1]:
            raise ValueError(
                f"basis: expected {sum(sizes)} columns, one for each element that has a gradient, got "
                f"{self.basis.shape[1]}."
            )
        flat = torch.cat([a.flatten() for a in whole])
        u = self.basis.to(flat.device)
        dtype = torch.promote_types(torch.promote_types(flat.dtype, u.dtype), torch.float32)
        u = u.to(dtype)
        projected = (u.mT @ (u @ flat.to(dtype))).split(sizes)
        return parts.own([g.reshape(a.shape).to(a.dtype) for g, a in zip(projected, whole, strict=True)]), general

    def __call__(self, entries: Tensor, state: State) -> Tensor:
        """α = 1, β = 0."""
        one = torch.ones_like(entries[:, 0])
        return torch.stack([one, torch.zeros_like(one)], dim=1)


def _quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, and 0 where the denominator is too small for one."""
    safe = denominator >= torch.finfo(denominator.dtype).tiny
    return torch.where(safe, numerator / torch.where(safe, denominator, 1.0), 0.0)


def _usable(*squares: Tensor) -> Tensor:
    """A mask of the units whose squared norms are finite and large enough to divide by."""
    tiny = torch.finfo(squares[0].dtype).tiny
    return torch.stack([(square >= tiny) & square.isfinite() for square in squares]).all(dim=0)


def _both_or_task_alone(entries: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """(α, β) where b can be used, else (1, 0)."""
    usable = _usable(entries[:, 2]) & entries[:, 1].isfinite() & alpha.isfinite() & beta.isfinite()
    return torch.stack([torch.where(usable, alpha, 1.0), torch.where(usable, beta, 0.0)], dim=1)


def _check(name: str, value: float, low: float, high: float, usual: str, below_high: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}; {usual}.")
    infinite = high == float("inf")
    if not low <= value <= high or (value == high and (below_high or infinite)):
        span = (
            f"a finite number of at least {low:g}"
            if infinite
            else f"{low:g} {'≤ x <' if below_high else '...'} {high:g}"
        )
        raise ValueError(f"{name}: expected {span}, got {value}; {usual}.")
