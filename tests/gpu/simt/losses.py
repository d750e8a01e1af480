"""The loss operators of csrc/cuda, run on the CPU and compared with the reference in float64."""

import math
from typing import Any

import torch
from torch import Tensor

from prograd_fast.ops.common import REDUCTIONS
from prograd_fast.reference import losses as reference
from tests.gpu.simt.library import Guarded, Library, accumulation
from tests.tolerances import assert_close


def run_dual_loss(
    simt: Library, z: Tensor, t: Tensor, labels: Tensor, reduction: int = 1, shift: int = 0, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    acc = accumulation(z.dtype)
    guarded = Guarded(shift)
    shape = (2, z.shape[0]) if reduction == 0 else (2,)
    results = (
        guarded(torch.full(shape, math.nan, dtype=acc)),
        guarded(torch.full((2, *z.shape), math.nan, dtype=z.dtype)),
        torch.tensor(-1),
    )
    weights = (options.get(name) for name in ("teacher_offset", "task_weight", "general_weight"))
    weights = tuple(None if weight is None else weight.to(acc) for weight in weights)
    simt.dual_loss_out(
        guarded(z),
        guarded(t),
        labels,
        *weights,
        options.get("temperature", 1.0),
        options.get("general") == "soft_ce",
        reduction,
        losses=results[0],
        cotangents=results[1],
        correct=results[2],
    )
    guarded.check()
    return results


def check_dual_loss(
    simt: Library, z: Tensor, t: Tensor, labels: Tensor, reduction: int = 1, shift: int = 0, **options: Any
) -> None:
    losses, cotangents, correct = run_dual_loss(simt, z, t, labels, reduction, shift, **options)
    wide = {name: value.double() if isinstance(value, Tensor) else value for name, value in options.items()}
    general = wide.pop("general", "kl")
    wide |= {"reduction": REDUCTIONS[reduction]}
    expected = torch.stack(reference.dual_loss(z.double(), t.double(), labels, general=general, **wide))
    by_logit = reference.dual_loss_cotangents(z.double(), t.double(), labels, **wide)
    assert_close(losses, expected, "formula", accumulation(z.dtype))
    assert_close(cotangents, by_logit, "formula", z.dtype)
    assert correct == reference.count_correct(z, labels), "wrong count"


def logits(rows: int, classes: int, dtype: torch.dtype, scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows * classes)
    z, t = (scale * torch.randn(2, rows, classes, generator=generator)).to(dtype)
    return z, t, torch.randint(classes, (rows,), generator=generator)


def check_linear_dual_loss(simt: Library, dtype: torch.dtype, rows: int, classes: int, width: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    x, w, v = (
        torch.nn.functional.normalize(torch.randn(n, width, generator=generator), dim=1).to(dtype)
        for n in (rows, classes, classes)
    )
    labels = torch.randint(classes, (rows,), generator=generator)
    acc = accumulation(dtype)
    offset, task_weight, general_weight = (torch.rand(n, generator=generator).to(acc) for n in (classes, rows, rows))
    scale, temperature = 20.0, 2.0
    for reduction, general in enumerate(("kl", "soft_ce", "kl")):
        guarded = Guarded()
        losses = guarded(torch.full((2, rows) if reduction == 0 else (2,), math.nan, dtype=acc))
        cotangents, correct = guarded(torch.full((2, classes, width), math.nan, dtype=dtype)), torch.tensor(-1)
        weights = (offset, task_weight, general_weight)
        simt.linear_dual_loss_out(
            *(guarded(matrix) for matrix in (x, w, v)),
            labels,
            *weights,
            scale,
            temperature,
            general == "soft_ce",
            reduction,
            losses=losses,
            cotangents=cotangents,
            correct=correct,
        )
        guarded.check()
        z, t = (reference.linear_logits(x.double(), classes, scale) for classes in (w.double(), v.double()))
        options: dict[str, Any] = {
            "teacher_offset": offset.double(),
            "task_weight": task_weight.double(),
            "general_weight": general_weight.double(),
            "reduction": REDUCTIONS[reduction],
        }
        expected = reference.dual_loss(z, t, labels, temperature, general, **options)  # type: ignore[arg-type]
        by_logit = reference.dual_loss_cotangents(z, t, labels, temperature, **options)
        assert_close(losses, torch.stack(expected), "formula", acc)
        assert_close(cotangents, scale * (by_logit.mT @ x.double()), "formula", dtype)
        assert correct == reference.count_correct(z, labels), "wrong count"
