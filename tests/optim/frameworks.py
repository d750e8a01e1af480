"""Lightning, Fabric and accelerate around an optimizer: each proxy calls a body with what its user holds then."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import accelerate
import lightning
import torch
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.optim.kinds import point

# what Lightning says of its own; a test has made errors of warnings
IGNORED = ("ignore:.*does not have many workers", "ignore:.*isinstance.treespec, LeafSpec")


class Numbers(nn.Module):
    """A model of two numbers, and of a third that no loss reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.p, self.q = point(), nn.Parameter(torch.zeros(1))

    def forward(self) -> Tensor:
        return 1 * self.p


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


@contextmanager
def accelerators_forgotten() -> Iterator[None]:
    """Accelerate's state is that of the process, and is forgotten afterwards."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
