"""Sides of a step on two gradients that are there already: ProGradAdamW, and what a user could assemble instead."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

import prograd_fast as pf
from benchmarks import authors
from benchmarks.measure import DEVICE, Side
from prograd_fast.ops.registry import operator_for

Shapes = Sequence[tuple[int, ...]]
Gradients = list[Tensor]

# one context of CLIP; beyond the caches; many tensors as in multi-modal prompts, 10^3 to 10^5 elements each
CONTEXT: Shapes = [(16, 512)]
LARGE: Shapes = [(10_000_000,)]
MANY: Shapes = [(round(1000 * 100 ** (i / 199)),) for i in range(200)]


def elements(shapes: Shapes) -> int:
    """Count the elements of all tensors together."""
    return sum(torch.Size(shape).numel() for shape in shapes)


def gradients(shapes: Shapes, conflict: bool = True) -> tuple[Gradients, Gradients]:
    """Task and general gradients with a cosine of -0.45 in each tensor, or +0.45 without a conflict."""
    g = torch.Generator().manual_seed(0)
    task = [torch.randn(shape, generator=g) for shape in shapes]
    tilt = -0.5 if conflict else 0.5
    general = [torch.randn(shape, generator=g) + tilt * a for shape, a in zip(shapes, task, strict=True)]
    return [a.to(DEVICE) for a in task], [b.to(DEVICE) for b in general]


def _params(shapes: Shapes) -> list[Parameter]:
    g = torch.Generator().manual_seed(1)
    return [Parameter(torch.randn(shape, generator=g).to(DEVICE)) for shape in shapes]


# ---- projections: a list of new gradients from two lists


def foreach_project(task: Gradients, general: Gradients) -> Gradients:
    """With torch's multi-tensor operators where there is one, and no branch on the host."""
    dots = torch.stack([product.sum() for product in torch._foreach_mul(task, general)])
    norms = torch.stack(torch._foreach_norm(general))
    coefficients = -dots.clamp(max=0) / norms.square()
    return list(torch._foreach_add(task, torch._foreach_mul(general, list(coefficients.unbind()))))


def closed_project(task: Gradients, general: Gradients) -> Gradients:
    """The formula, for torch.compile."""
    return [a - (a * b).sum().clamp(max=0) / (b * b).sum() * b for a, b in zip(task, general, strict=True)]


# ---- steps


def _assembled(project: Callable[[Gradients, Gradients], Gradients], **options: bool) -> Callable[..., Side]:
    def build(shapes: Shapes, conflict: bool = True) -> Side:
        params = _params(shapes)
        opt = torch.optim.AdamW(params, **options)
        task, general = gradients(shapes, conflict)

        def step() -> list[Parameter]:
            for p, g in zip(params, project(task, general), strict=True):
                p.grad = g
            opt.step()
            return params

        return step

    return build


def prograd_adamw(shapes: Shapes, conflict: bool = True) -> Side:
    """The whole class: `opt.step()`, which leaves both gradients as they are."""
    params = _params(shapes)
    opt = pf.ProGradAdamW(params)
    task, general = gradients(shapes, conflict)
    opt.backward(
        sum((p * a).sum() for p, a in zip(params, task, strict=True)),
        sum((p * b).sum() for p, b in zip(params, general, strict=True)),
    )

    def step() -> list[Parameter]:
        opt.step()
        return params

    return step


def adamw_operator(shapes: Shapes, conflict: bool = True) -> Side:
    """The kernel that the class calls, by the same way, with all lists made beforehand."""
    params: list[Tensor] = [p.detach() for p in _params(shapes)]
    task, general = gradients(shapes, conflict)
    moments = [[torch.zeros_like(p) for p in params] for _ in range(2)]
    steps = [torch.zeros((), device=DEVICE if DEVICE == "cuda" else "cpu") for _ in params]
    entries = torch.empty(len(params), 3, device=DEVICE)
    operator = operator_for("project_adamw_", params[0])

    def step() -> list[Tensor]:
        operator(
            params, task, general, *moments, [], steps, entries, None, None, 1e-3, 0.9, 0.999, 1e-8, 1e-2, 1.0, 0.0,
            0, False, False, None,
        )  # fmt: skip
        return params

    return step


def compiled(shapes: Shapes, conflict: bool = True) -> Side:
    """Projection and AdamW in closed form, through torch.compile."""
    params: list[Tensor] = [p.detach() for p in _params(shapes)]
    task, general = gradients(shapes, conflict)
    moments = [[torch.zeros_like(p) for p in params] for _ in range(2)]
    steps = torch.zeros((), device=DEVICE)

    def formula() -> None:
        steps.add_(1)
        root = (1 - 0.999**steps).sqrt()
        for p, g, m, v in zip(params, closed_project(task, general), *moments, strict=True):
            p.mul_(1 - 1e-3 * 1e-2)
            m.lerp_(g, 0.1)
            v.mul_(0.999).addcmul_(g, g, value=0.001)
            p.sub_(1e-3 / (1 - 0.9**steps) * m / (v.sqrt() / root + 1e-8))

    fast = torch.compile(formula)

    def step() -> list[Tensor]:
        fast()
        return params

    return step


def plain_adamw(shapes: Shapes, conflict: bool = True) -> Side:
    """torch.optim.AdamW(fused=True) on the task gradient alone, without any projection: the floor."""
    params = _params(shapes)
    opt = torch.optim.AdamW(params, fused=True)
    task, _ = gradients(shapes, conflict)
    for p, a in zip(params, task, strict=True):
        p.grad = a

    def step() -> list[Parameter]:
        opt.step()
        return params

    return step


STEPS: dict[str, Callable[..., Side]] = {
    "ProGradAdamW": prograd_adamw,
    "project_adamw_ operator": adamw_operator,
    "authors + AdamW": _assembled(authors.project),
    "authors + AdamW(fused)": _assembled(authors.project, fused=True),
    "foreach + AdamW(foreach)": _assembled(foreach_project, foreach=True),
    "torch.compile": compiled,
    "AdamW(fused) alone": plain_adamw,
}
