"""Guards the own ways of Lightning, Fabric and accelerate: automatic steps, scalers, accumulation, checkpoints."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import accelerate
import lightning
import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from lightning.fabric.plugins import MixedPrecision as FabricMixedPrecision
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

import prograd_fast as pf
from tests.optim.frameworks import IGNORED, Manual, Numbers, accelerators_forgotten, batches, trainer
from tests.optim.kinds import OPTIMIZERS, RATE_ONE, conflict_of, everything, point
from tests.optim.support import same

pytestmark = pytest.mark.filterwarnings(*IGNORED, "ignore:.*resuming from a checkpoint")


@pytest.fixture(autouse=True)
def _no_accelerator() -> Iterator[None]:
    with accelerators_forgotten():
        yield


class Automatic(lightning.LightningModule):
    """Lightning's automatic optimization, whose own hook for the backward is the place for two losses."""

    def __init__(self, opt: Callable[[Any], Any]) -> None:
        super().__init__()
        self.p, self.make = point(), opt

    def configure_optimizers(self) -> Any:
        return self.make([self.p])

    def training_step(self, batch: Tensor) -> Tensor:
        task, self.general = conflict_of(self.p, 8.0)
        return task

    def backward(self, loss: Tensor) -> None:
        self.optimizers().backward(loss, self.general)  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", RATE_ONE)
def test_automatic_optimization(kind: str) -> None:
    """Lightning's closure runs the backward inside of the step, and clips to 1 before the update."""
    module = Automatic(RATE_ONE[kind])
    trainer(2, gradient_clip_val=1.0).fit(module, batches(2))
    assert module.p.tolist() == pytest.approx([-2, 0])


def test_a_resumed_trainer_goes_on(tmp_path: Any) -> None:
    """A checkpoint of the Trainer has the rule's memory."""

    def make(params: Any) -> Any:
        return pf.ProGradAdamW(params, lr=0.1, rule=pf.rules.GradVac(0.5))

    whole, first, second = Automatic(make), Automatic(make), Automatic(make)
    trainer(4).fit(whole, batches(4))
    begun = trainer(2)
    begun.fit(first, batches(4))
    begun.save_checkpoint(tmp_path / "two.ckpt")
    trainer(4).fit(second, batches(4), ckpt_path=tmp_path / "two.ckpt", weights_only=True)
    assert torch.equal(second.p, whole.p)
    assert not torch.equal(first.p, whole.p)


@pytest.mark.parametrize("overflow", ["nothing", "task", "general"])
@pytest.mark.parametrize("kind", RATE_ONE)
def test_trainer_with_a_scaler(kind: str, overflow: str) -> None:
    """Lightning's plugin scales, skips and lowers the scale; the losses are given to it by `scaler=`."""
    model, scaler = Numbers(), torch.amp.GradScaler("cpu", init_scale=1024.0)
    opt = RATE_ONE[kind](model.parameters())

    def body(handed: Any) -> None:
        task, general = conflict_of(model.p)
        factors = [torch.inf if name == overflow else 1.0 for name in ("task", "general")]
        handed.zero_grad()
        handed.backward(task * factors[0], general * factors[1], scaler=scaler)
        handed.step()

    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    trainer(-1, max_epochs=1, plugins=plugin).fit(Manual(model, opt, body), batches())
    assert model.p.tolist() == ([-1, 0] if overflow == "nothing" else [0, 0])
    assert scaler.get_scale() == (1024 if overflow == "nothing" else 512)


def test_fabric_with_a_scaler_refuses_by_itself() -> None:
    """Fabric insists on its own backward where it scales losses; it says so, and nothing has moved."""
    scaler = torch.amp.GradScaler("cpu")
    fabric = lightning.Fabric(accelerator="cpu", devices=1, plugins=FabricMixedPrecision("16-mixed", "cpu", scaler))
    model = Numbers()
    module, opt = fabric.setup(model, pf.ProGradSGD(model.parameters(), lr=1.0))
    p = module()
    with pytest.raises(RuntimeError, match=r"fabric\.backward"):
        opt.backward(*conflict_of(p), scaler=scaler)
    assert model.p.grad is None
    opt.backward(*conflict_of(model()), scaler=scaler)  # around Fabric's module
    scaler.step(opt.optimizer)
    assert model.p.tolist() == [-1, 0]


@pytest.mark.parametrize("kind", RATE_ONE)
def test_accelerate_accumulates_and_clips(kind: str) -> None:
    """`accelerator.accumulate` lets `step` and `zero_grad` through at every second batch."""
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = Numbers()
    model, prepared = accelerator.prepare(model, RATE_ONE[kind](model.parameters()))
    for factor in (2.0, 3.0):
        with accelerator.accumulate(model):
            prepared.optimizer.backward(*conflict_of(model.p, factor))
            if accelerator.sync_gradients:
                assert accelerator.clip_grad_norm_(model.parameters(), 1.0) == pytest.approx(5.0)
            prepared.step()
            prepared.zero_grad()
    assert model.p.tolist() == pytest.approx([-1, 0])
    assert model.p.grad is None


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.filterwarnings("ignore:.*never:UserWarning")  # that nothing was projected is the point of `plain`
def test_accelerate_knows_of_skipped_steps(kind: str, plain: bool) -> None:
    """Row 13: a skipped step is not called, so that accelerate's schedulers wait too."""
    accelerate.Accelerator(cpu=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    p = point()
    opt = AcceleratedOptimizer(OPTIMIZERS[kind]([p]), scaler=scaler)
    for factor, skipped in ((1.0, False), (torch.inf, True), (1.0, False)):
        opt.zero_grad()
        task, general = conflict_of(p)
        if plain:
            scaler.scale(task * factor).backward()
        else:
            opt.optimizer.backward(task, general * factor, scaler=scaler)
        before = p.detach().clone()
        opt.step()
        assert opt.step_was_skipped is skipped
        assert torch.equal(before, p) is skipped
    assert scaler.get_scale() == 512


def test_accelerate_saves_and_loads(tmp_path: Any) -> None:
    """`save_state` and `load_state` keep the rule's memory."""
    accelerator = accelerate.Accelerator(cpu=True)
    model = Numbers()
    model, prepared = accelerator.prepare(model, pf.ProGradSGD(model.parameters(), lr=1.0, rule=pf.rules.Bloop(0.5)))

    def step(factor: float) -> None:
        prepared.zero_grad()
        prepared.optimizer.backward(*conflict_of(model.p, factor))
        prepared.step()

    step(1.0)
    accelerator.save_state(str(tmp_path))
    step(2.0)
    expected = everything(prepared.optimizer)
    step(5.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # accelerate's own, of how it loads
        accelerator.load_state(str(tmp_path))
    step(2.0)
    assert same(everything(prepared.optimizer).values(), expected.values())
