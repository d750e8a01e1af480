"""Guards use through Lightning's, Fabric's and accelerate's proxies of an optimizer: nothing in them goes around it.

Each action is done through each proxy. What is expected is written down for a learning rate of 1.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import accelerate
import lightning
import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState
from lightning.fabric.plugins import MixedPrecision as FabricMixedPrecision
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

import prograd_fast as pf
from tests.optim.kinds import OPTIMIZERS, RATE_ONE, agreement_of, conflict_of, everything, point
from tests.optim.support import same

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*isinstance.treespec, LeafSpec", "ignore:.*lr_scheduler.step"
)


class Numbers(nn.Module):
    """A model of two numbers, and of a third that no loss reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.p, self.q = point(), nn.Parameter(torch.zeros(1))

    def forward(self) -> Tensor:
        return 1 * self.p


# ---- proxies: each calls body(what the framework hands to the user)

Body = Callable[[Any], None]


class Manual(lightning.LightningModule):
    """Lightning's manual optimization; each training step is a call of `body`."""

    def __init__(self, model: nn.Module, opt: Any, body: Callable[[Any], None]) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model, self.opt, self.body = model, opt, body

    def configure_optimizers(self) -> Any:
        return self.opt

    def training_step(self, batch: Tensor) -> None:
        self.body(self.optimizers())


def trainer(steps: int = 1, **settings: Any) -> lightning.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    settings = {"enable_model_summary": False, "max_epochs": -1, "max_steps": steps} | quiet | settings
    return lightning.Trainer(accelerator="cpu", **settings)


def batches(count: int = 1) -> DataLoader[Any]:
    return DataLoader(torch.zeros(count, 1))  # type: ignore[arg-type]


def through_trainer(model: nn.Module, opt: Any, body: Body) -> None:
    called = []

    def once(proxy: Any) -> None:
        if not called:
            called.append(proxy)
            body(proxy)

    # an action that does not step must end too
    trainer(-1, max_epochs=1).fit(Manual(model, opt, once), batches())
    assert called


def through_fabric(model: nn.Module, opt: Any, body: Body) -> None:
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    _, proxy = fabric.setup(model, opt)
    assert proxy is not opt
    body(proxy)


def through_fabric_optimizers_alone(model: nn.Module, opt: Any, body: Body) -> None:
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    fabric.setup_module(model)
    body(fabric.setup_optimizers(opt))


def through_accelerate(model: nn.Module, opt: Any, body: Body) -> None:
    _, prepared = accelerate.Accelerator(cpu=True).prepare(model, opt)
    assert prepared.optimizer is opt
    body(prepared.optimizer)


class Forwarding:
    """A proxy as apex, HeavyBall and others write it: it has the optimizer's class and forwards what it lacks."""

    def __init__(self, opt: Any) -> None:
        self._inner_optimizer = opt
        self.__class__ = type(type(opt).__name__, (Forwarding, type(opt)), {})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner_optimizer, name)

    def step(self, closure: Any = None) -> Any:
        return self._inner_optimizer.step(closure)


def through_forwarding(model: nn.Module, opt: Any, body: Body) -> None:
    body(Forwarding(opt))


PROXIES = {
    "no proxy": lambda model, opt, body: body(opt),
    "Trainer": through_trainer,
    "Fabric": through_fabric,
    "Fabric, optimizer alone": through_fabric_optimizers_alone,
    "accelerate": through_accelerate,
    "forwarding": through_forwarding,
}


@pytest.fixture(autouse=True)
def _no_accelerator() -> Iterator[None]:
    """Accelerate's state is that of the process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


# ---- actions


def plain_steps(opt: Any, p: Tensor) -> None:
    opt.zero_grad()
    opt.backward(*conflict_of(p))
    assert p.grad is not None
    assert p.grad.tolist() == [1, 0]
    opt.step()


def two_backwards(opt: Any, p: Tensor) -> None:
    opt.backward(*conflict_of(p))
    opt.backward(*conflict_of(p, 2.0))
    opt.step()


def one_call(opt: Any, p: Tensor) -> None:
    opt.backward_and_update(*conflict_of(p))
    assert p.grad is None


def pair_closure(opt: Any, p: Tensor) -> None:
    opt.step(lambda: conflict_of(p))


def loss_closure(opt: Any, p: Tensor) -> None:
    def closure() -> Tensor:
        opt.zero_grad()
        opt.backward(*conflict_of(p))
        return p.sum()

    opt.step(closure)


def accumulated(opt: Any, p: Tensor) -> None:
    with opt.accumulate():
        opt.backward(*conflict_of(p))
        assert p.grad is None
    opt.backward(3 * p[1], 1 * p[1])  # the sums agree: (1, 2) and (0, 2)
    opt.step()


def accumulated_then_one_call(opt: Any, p: Tensor) -> None:
    with opt.accumulate():
        opt.backward(*conflict_of(p))
    opt.backward_and_update(3 * p[1], 1 * p[1])


def skipped_batch(opt: Any, p: Tensor) -> None:
    opt.backward(*conflict_of(p))
    opt.zero_grad()
    opt.backward(*agreement_of(p))
    opt.step()


def skipped_block(opt: Any, p: Tensor) -> None:
    with opt.accumulate():
        opt.backward(*conflict_of(p))
    opt.zero_grad()
    opt.backward(*agreement_of(p))
    opt.step()


def forgotten_block(opt: Any, p: Tensor) -> None:
    with opt.accumulate():
        opt.backward(*conflict_of(p))
    with pytest.raises(RuntimeError, match="accumulate"):
        opt.step()
    assert p.tolist() == [0, 0]
    opt.zero_grad()


def block_with_an_error(opt: Any, p: Tensor) -> None:
    with pytest.raises(KeyError), opt.accumulate():
        opt.backward(*conflict_of(p))
        raise KeyError
    opt.backward(*agreement_of(p))
    opt.step()


def raised_floor(opt: Any, p: Tensor) -> None:
    opt.noise_floor = 0.8  # b is 0.7 of a
    assert opt.noise_floor == 0.8
    opt.backward(*conflict_of(p))
    opt.step()
    assert opt.conflict.absent.tolist() == [1, 0]


def scaled(opt: Any, p: Tensor) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    opt.backward(*conflict_of(p), scaler=scaler)
    assert p.grad is not None
    assert p.grad.tolist() == [65536, 0]
    scaler.step(opt)
    scaler.update()


def clipped(opt: Any, p: Tensor) -> None:
    opt.backward(*conflict_of(p, 8.0))
    torch.nn.utils.clip_grad_norm_(p, 1.0)
    opt.step()


# what the two numbers and the counts of conflicts are afterwards, at a learning rate of 1
ACTIONS: dict[str, tuple[Callable[[Any, Tensor], None], list[float], int]] = {
    "plain steps": (plain_steps, [-1, 0], 1),
    "two backwards": (two_backwards, [-3, 0], 2),
    "one call": (one_call, [-1, 0], 1),
    "pair closure": (pair_closure, [-1, 0], 1),
    "loss closure": (loss_closure, [-1, 0], 1),
    "accumulated": (accumulated, [-1, -2], 0),
    "accumulated, then one call": (accumulated_then_one_call, [-1, -2], 0),
    "skipped batch": (skipped_batch, [-1, 1], 1),
    "skipped block": (skipped_block, [-1, 1], 0),
    "forgotten block": (forgotten_block, [0, 0], 0),
    "block with an error": (block_with_an_error, [-1, 1], 0),
    "raised floor": (raised_floor, [-1, 1], 0),
    "scaled": (scaled, [-1, 0], 1),
    "clipped": (clipped, [-1, 0], 1),
}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("proxy", PROXIES)
@pytest.mark.parametrize("kind", RATE_ONE)
def test_through_a_proxy(kind: str, proxy: str, action: str) -> None:
    """Row 1 of the table: with a proxy there was no projection at all, and no message."""
    model = Numbers()
    opt = RATE_ONE[kind](model.parameters())
    act, expected, conflicts = ACTIONS[action]

    def body(handed: Any) -> None:
        act(handed, model.p)
        assert handed.conflict.conflicts.tolist() == [conflicts, 0]

    PROXIES[proxy](model, opt, body)
    assert model.p.tolist() == pytest.approx(expected)
    assert opt.conflict.conflicts.tolist() == [conflicts, 0]


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("proxy", [name for name in PROXIES if name != "no proxy"])
def test_adamw_through_a_proxy(proxy: str, action: str) -> None:
    """The same step as without the proxy, bit for bit, state included."""
    model, other = Numbers(), Numbers()
    opt, plain = OPTIMIZERS["adamw"](model.parameters()), OPTIMIZERS["adamw"](other.parameters())
    act = ACTIONS[action][0]
    PROXIES[proxy](model, opt, lambda handed: act(handed, model.p))
    act(plain, other.p)
    assert same(everything(opt).values(), everything(plain).values())


@pytest.mark.parametrize("proxy", PROXIES)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_state_through_a_proxy(kind: str, proxy: str) -> None:
    """A checkpoint that is taken and loaded through proxies has the rule's memory."""
    model, twin = Numbers(), Numbers()
    opt, other = (OPTIMIZERS[kind](m.parameters(), rule=pf.rules.Bloop(0.5, 0.5)) for m in (model, twin))
    saved: list[Any] = []

    def two_steps_and_save(handed: Any) -> None:
        for factor in (1.0, 3.0):
            handed.zero_grad()
            handed.backward(*conflict_of(model.p, factor))
            handed.step()
        saved.append(handed.state_dict())

    PROXIES[proxy](model, opt, two_steps_and_save)
    twin.load_state_dict(model.state_dict())
    PROXIES[proxy](twin, other, lambda handed: handed.load_state_dict(saved[0]))
    assert "task_average" in opt.state[model.p]
    for m, o in ((model, opt), (twin, other)):
        o.zero_grad()
        o.backward(*agreement_of(m.p))
        o.step()
    assert same(everything(opt).values(), everything(other).values())


# ---- the frameworks' own ways


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
    with pytest.raises(RuntimeError, match="fabric.backward"):
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
