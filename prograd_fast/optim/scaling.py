"""Loss scaling: what an optimizer with two gradients needs of a `torch.amp.GradScaler`, by its public methods."""

import sys
import warnings
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.amp import GradScaler


def scale_of(scaler: GradScaler | None, device: torch.device) -> Tensor | None:
    """The scale, 0-d on the device; None where nothing is scaled. Does not wait for the device."""
    if scaler is None or not scaler.is_enabled():
        return None
    scale: Tensor = scaler.scale(torch.ones((), device=device))
    return scale


class LossScaling:
    """Who scales the losses of an optimizer.

    Attributes:
        update_unscales: what `torch.optim` says to a GradScaler of a fused update.
    """

    def __init__(self) -> None:
        self.update_unscales = False
        self._by_hand = False
        self._warned = False
        self._stand_in = SimpleNamespace(param_groups=[])

    def projected(self, scaler: GradScaler | None) -> None:
        """Note that gradients were projected whose losses this scaler had scaled."""
        self._by_hand = scaler is None

    def asked(self, rule: object, has_memory: bool) -> bool:
        """Return `update_unscales`. A GradScaler asks at its step, and then it shows who has scaled the losses.

        Raises:
            RuntimeError: they were scaled by hand, and the rule has a memory.
        """
        if self._by_hand and sys._getframe(2).f_code is GradScaler.step.__code__:
            if has_memory:
                raise RuntimeError(
                    f"backward: expected the scaler of the losses, since {rule!r} has a memory that must not hold the "
                    "scale or what overflowed; got losses scaled by hand. Call backward(task, general, scaler=scaler) "
                    "on the plain losses."
                )
            if not self._warned:
                self._warned = True
                warnings.warn(
                    "backward() got losses that were scaled by hand. Where their general gradient is not finite, the "
                    "plain task gradient is taken and the scale does not fall. Call "
                    "backward(task, general, scaler=scaler) on the plain losses.",
                    stacklevel=4,
                )
        return self.update_unscales

    def tell(self, scaler: GradScaler, found_inf: Tensor) -> None:
        """Let the scaler know what an update found that has unscaled by itself, so that `scaler.update()` works.

        Args:
            scaler: whose public way to look at gradients is to unscale those of an optimizer: here, of a stand-in.
            found_inf: 0-d, above 0 where a gradient was not finite.
        """
        flag = torch.zeros_like(found_inf, requires_grad=True)
        flag.grad = torch.where(found_inf > 0, torch.inf, 0.0)
        self._stand_in.param_groups[:] = [{"params": [flag]}]
        scaler.unscale_(self._stand_in)  # type: ignore[arg-type]

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_stand_in": SimpleNamespace(param_groups=[])}
