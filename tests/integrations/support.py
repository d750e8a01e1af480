"""A small model, its teacher, and the bare training loop that every adapter is compared with."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prograd_fast as pf
from tests.tolerances import assert_close, relative_error

Batch = tuple[Tensor, Tensor]
Make = Callable[..., Any]
Trained = Callable[[Make], Tensor]

WIDTH, CLASSES = 6, 4
TEACHER = torch.randn(WIDTH, CLASSES, generator=torch.Generator().manual_seed(1))
OPTIMIZERS: dict[str, Make] = {
    "adamw": lambda p, **k: pf.ProGradAdamW(p, lr=0.02, **k),
    "sgd": lambda p, **k: pf.ProGradSGD(p, lr=0.1, momentum=0.9, **k),
    "wrapper": lambda p, **k: pf.ProGrad(torch.optim.RMSprop(p, lr=0.01), **k),
}
kinds = pytest.mark.parametrize("kind", OPTIMIZERS)


def student() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, CLASSES))


def batches(count: int) -> list[Batch]:
    """Pictures and labels that have nothing to do with the teacher, so that the losses conflict."""
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(5, WIDTH, generator=generator), torch.randint(CLASSES, (5,), generator=generator))
        for _ in range(count)
    ]


def both(logits: Tensor, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    with torch.autocast("cpu", enabled=False):  # transformers' Trainer runs the model alone under autocast
        return pf.DualLoss()(logits.float(), x @ TEACHER, labels)


def numbers(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def bare(
    make: Make,
    data: Sequence[Batch],
    accumulate: int = 1,
    clip: float | None = None,
    autocast: torch.dtype | None = None,
    scaler: Any = None,
) -> Tensor:
    """The parameters after training without any framework."""
    model = student()
    opt = make(model.parameters())
    for i, (x, labels) in enumerate(data, 1):
        with torch.autocast("cpu", autocast) if autocast else nullcontext():
            task, general = both(model(x), x, labels)
        with nullcontext() if i % accumulate == 0 else opt.accumulate():
            opt.backward(task / accumulate, general / accumulate, scaler=scaler)
        if i % accumulate:
            continue
        if scaler is not None:
            scaler.unscale_(opt)
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        if scaler is None:
            opt.step()
        else:
            scaler.step(opt)
            scaler.update()
        opt.zero_grad()
    return numbers(model)


def check(trained: Trained, make: Make, data: Sequence[Batch], **settings: Any) -> None:
    """Training in a framework gives the bare loop's numbers, and not those without projection."""
    ours = trained(make)
    assert_close(ours, bare(make, data, **settings), "adapter", torch.float32)
    unprojected = trained(lambda params, **options: make(params, **options, lambda_=0.0))
    assert relative_error(unprojected, ours) > 1e-3
