"""Lightning with the mixin `TwoLosses`, and its manual optimization without any adapter, are the bare loop."""

from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.utils.data import DataLoader

from prograd_fast.integrations.lightning import TwoLosses
from tests.integrations.support import OPTIMIZERS, batches, both, check, kinds, numbers, student
from tests.optim.frameworks import IGNORED, trainer

pytestmark = pytest.mark.filterwarnings(*IGNORED)
DATA = batches(8)
LOADER: Any = DataLoader(DATA, batch_size=None)  # type: ignore[arg-type]


class Module(TwoLosses, lightning.LightningModule):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.model, self.make = student(), make

    def configure_optimizers(self) -> Any:
        return self.make(self.model.parameters())

    def training_step(self, batch: Any) -> Tensor:
        x, labels = batch
        return self.two_losses(*both(self.model(x), x, labels))


class Manual(Module):
    """As docs/integrations.md writes it, without the mixin's help."""

    def __init__(self, make: Any) -> None:
        super().__init__(make)
        self.automatic_optimization = False

    def training_step(self, batch: Any) -> None:  # type: ignore[override]
        x, labels = batch
        task, general = both(self.model(x), x, labels)
        opt: Any = self.optimizers()
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        opt.zero_grad()
        opt.backward(task, general, scaler=scaler)
        if scaler is None:  # Lightning unscales in the step, too late for clipping by hand
            self.clip_gradients(opt, gradient_clip_val=0.5)
        opt.step()


def train(make: Any, module: Any = Module, **settings: Any) -> Tensor:
    fitted = module(make)
    trainer(-1, max_epochs=1, **settings).fit(fitted, LOADER)
    return numbers(fitted.model)


def half() -> Any:
    return torch.amp.GradScaler("cpu", init_scale=1024.0)


@kinds
def test_clips(kind: str) -> None:
    check(lambda make: train(make, gradient_clip_val=0.5), OPTIMIZERS[kind], DATA, clip=0.5)


@kinds
def test_accumulates(kind: str) -> None:
    """The sum of two micro-batches is projected, not each."""

    def trained(make: Any) -> Tensor:
        return train(make, gradient_clip_val=0.5, accumulate_grad_batches=2)

    check(trained, OPTIMIZERS[kind], DATA, accumulate=2, clip=0.5)


def test_bfloat16() -> None:
    check(lambda make: train(make, precision="bf16-mixed"), OPTIMIZERS["adamw"], DATA, autocast=torch.bfloat16)


@pytest.mark.parametrize(("module", "clip"), [(Module, 0.5), (Manual, None)])
def test_float16(module: Any, clip: float | None) -> None:
    """With a gradient scaler, which unscales before gradients are clipped."""

    def trained(make: Any) -> Tensor:
        settings = {} if clip is None else {"gradient_clip_val": clip}
        return train(make, module, plugins=MixedPrecision("16-mixed", "cpu", half()), **settings)

    check(trained, OPTIMIZERS["sgd"], DATA, clip=clip, autocast=torch.float16, scaler=half())


@kinds
def test_manual(kind: str) -> None:
    check(lambda make: train(make, Manual), OPTIMIZERS[kind], DATA, clip=0.5)


def test_a_loss_from_elsewhere_is_refused() -> None:
    class Forgotten(Module):
        def training_step(self, batch: Any) -> Tensor:
            return self.model(batch[0]).sum()

    with pytest.raises(RuntimeError, match=r"training_step: expected it to return self\.two_losses"):
        train(OPTIMIZERS["sgd"], Forgotten)


@kinds
def test_it_says_once_that_nothing_was_projected(kind: str) -> None:
    """A module without the mixin: Lightning's own backward differentiates the task loss alone."""

    class OneLoss(Module):
        backward = lightning.LightningModule.backward

    with pytest.warns(UserWarning, match="never got a general gradient") as said:
        train(OPTIMIZERS[kind], OneLoss)
    assert len([one for one in said if "never got" in str(one.message)]) == 1
