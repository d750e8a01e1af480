"""accelerate's loop with `integrations.accelerate.backward` is the bare loop."""

from collections.abc import Iterator
from typing import Any

import accelerate
import pytest
import torch

from prograd_fast.integrations.accelerate import backward
from tests.integrations.support import OPTIMIZERS, batches, both, check, kinds, numbers, student
from tests.optim.frameworks import accelerators_forgotten

DATA = batches(8)


@pytest.fixture(autouse=True)
def _no_accelerator() -> Iterator[None]:
    with accelerators_forgotten():
        yield


def train(make: Any, clip: float | None = None, scaler: Any = None, **settings: Any) -> torch.Tensor:
    accelerator = accelerate.Accelerator(cpu=True, **settings)
    if scaler is not None:  # accelerate refuses fp16 without a GPU; so it gets what it would have made
        accelerator.scaler = scaler()
    model = student()
    model, optimizer = accelerator.prepare(model, make(model.parameters()))
    for x, labels in DATA:
        with accelerator.accumulate(model):
            with accelerator.autocast():
                losses = both(model(x), x, labels)
            backward(accelerator, optimizer, *losses)
            if clip is not None and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
    return numbers(accelerator.unwrap_model(model))


@kinds
def test_clips(kind: str) -> None:
    check(lambda make: train(make, clip=0.5), OPTIMIZERS[kind], DATA, clip=0.5)


@kinds
def test_accumulates(kind: str) -> None:
    """The sum of two micro-batches is projected, not each."""

    def trained(make: Any) -> torch.Tensor:
        return train(make, clip=0.5, gradient_accumulation_steps=2)

    check(trained, OPTIMIZERS[kind], DATA, accumulate=2, clip=0.5)


def test_bfloat16() -> None:
    def trained(make: Any) -> torch.Tensor:
        with accelerators_forgotten():
            return train(make, mixed_precision="bf16")

    check(trained, OPTIMIZERS["adamw"], DATA, autocast=torch.bfloat16)


def test_scaler() -> None:
    def scaler() -> Any:
        return torch.amp.GradScaler("cpu", init_scale=1024.0)

    def trained(make: Any) -> torch.Tensor:
        return train(make, scaler=scaler, gradient_accumulation_steps=2)

    check(trained, OPTIMIZERS["sgd"], DATA, accumulate=2, scaler=scaler())


def test_an_optimizer_of_another_kind_is_refused() -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    model = student()
    optimizer = accelerator.prepare(torch.optim.SGD(model.parameters(), lr=1.0))
    with pytest.raises(TypeError, match=r"optimizer: expected a ProGradAdamW, .* got AcceleratedOptimizer"):
        backward(accelerator, optimizer, numbers(model).sum())
    assert all(p.grad is None for p in model.parameters())


@kinds
def test_it_says_once_that_nothing_was_projected(kind: str) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    model = student()
    model, optimizer = accelerator.prepare(model, OPTIMIZERS[kind](model.parameters()))

    def steps() -> None:
        for x, _ in DATA:
            accelerator.backward(model(x).sum())
            optimizer.step()

    with pytest.warns(UserWarning, match="never got a general gradient") as said:
        steps()
    assert len(said) == 1
