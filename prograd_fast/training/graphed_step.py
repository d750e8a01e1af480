"""Training steps on a GPU as one CUDA graph: one of them is recorded, and the others replay it without Python."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor
from torch.optim import Optimizer

Step = Callable[[Tensor, Tensor], Tensor]
"""Takes a batch, (B, D) features and (B,) labels, trains on it, and returns its figures. Never waits for the device."""

WARM_UP = 3  # steps of an optimizer before one is recorded: they make its states, and libraries choose their kernels


class GraphedStep:
    """Takes steps one by one, and replays them as soon as it can.

    A replay launches the kernels of the recorded step again, on the same memory, and gives the same numbers to the last
    bit. What a step reads and writes must stay where it is. The batch is copied to where the recorded step found its
    own, and the learning rates are numbers on the device meanwhile. Batches of other shapes, such as the last one of an
    epoch, go the ordinary way. A new optimizer, as a new stage of a method brings one, is recorded anew; and so is one
    whose options or states were replaced, or whose parameters were frozen or thawed.

    Args:
        step: one step.
        optimizer: returns the optimizer whose step it is.
        generators: whose random numbers it draws, beside those of the default one.
        failed: called after a step that could not be recorded, to drop what it left half done.
        wanted: None: replay where it is possible; False: never.

    Attributes:
        replayed: how many steps were replayed.
        reason: why steps are not replayed; None while nothing is in the way.
    """

    def __init__(
        self,
        step: Step,
        optimizer: Callable[[], Optimizer],
        generators: list[Generator],
        failed: Callable[[], None],
        wanted: bool | None = None,
    ) -> None:
        self._step, self._optimizer_now, self._generators, self._failed = step, optimizer, generators, failed
        self._optimizer = optimizer()
        self._taken: dict[tuple[torch.Size, torch.dtype], int] = {}  # steps of this optimizer by kind of batch
        self._recording: _Recording | None = None
        self._kind: tuple[torch.Size, torch.dtype] | None = None  # of the recorded batch
        self.replayed = 0
        self.reason = "not asked for" if wanted is False else _why_not(self._optimizer)

    def __call__(self, features: Tensor, labels: Tensor) -> Tensor:
        """Take a step; its figures, in memory of their own."""
        if self.reason is None:
            self.reason = _why_not(self._optimizer_now())
        if self.reason is not None:
            return self._step(features, labels)
        another = self._optimizer_now() is not self._optimizer
        if another or (self._recording is not None and not self._recording.holds()):
            self._optimizer, self._taken, self._recording = self._optimizer_now(), {}, None
        kind = features.shape, features.dtype
        if self._recording is None and self._taken.get(kind, 0) >= WARM_UP:
            self._record(features, labels)
            self._kind = kind
        if self._recording is not None and kind == self._kind:
            self.replayed += 1
            return self._recording(features, labels)
        self._taken[kind] = self._taken.get(kind, 0) + 1
        return self._step(features, labels)

    def _record(self, features: Tensor, labels: Tensor) -> None:
        try:
            self._recording = _Recording(self._step, self._optimizer, features, labels, self._generators)
        except Exception as error:  # a fault of the step itself comes again in the ordinary way
            self.reason = f"the step cannot be recorded: {(str(error) or type(error).__name__).splitlines()[0]}"
            self._failed()


class _Recording:
    """One step, recorded: its inputs, its result, and what runs it again."""

    def __init__(
        self, step: Step, optimizer: Optimizer, features: Tensor, labels: Tensor, generators: list[Generator]
    ) -> None:
        self._optimizer, self._device = optimizer, features.device
        groups = self._groups()
        before = [group["lr"] for group in groups]
        self._now = list(map(float, before))
        self._rates = [torch.full((), lr, dtype=torch.float64, device=features.device) for lr in self._now]
        self._batch = features.clone(), labels.clone()
        getattr(optimizer, "conflict", None)  # counts what came before: a graph counts its own step alone
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate
        try:
            self._replay, self._figures = record(lambda: step(*self._batch), generators)
        finally:
            for group, lr in zip(groups, before, strict=True):
                group["lr"] = lr
        self._fixed = _fixed(optimizer, features.device)

    def _groups(self) -> list[dict[str, Any]]:
        """The groups whose rate is a number; one that is a tensor on the device is read where it is."""
        return [group for group in self._optimizer.param_groups if not _is_on(group["lr"], self._device)]

    def holds(self) -> bool:
        """Whether the optimizer is what it was, but for its rates and the content of its tensors."""
        now = _fixed(self._optimizer, self._device)
        return len(now) == len(self._fixed) and all(map(_is_same, now, self._fixed))

    def __call__(self, *batch: Tensor) -> Tensor:
        for i, group in enumerate(self._groups()):
            lr = float(group["lr"])
            if lr != self._now[i]:
                self._now[i] = lr
                self._rates[i].fill_(lr)
        for own, tensor in zip(self._batch, batch, strict=True):
            own.copy_(tensor)
        self._replay()
        return self._figures.clone()


def record(step: Callable[[], Tensor], generators: list[Generator]) -> tuple[Callable[[], None], Tensor]:
    """Record what a step launches, without running it.

    Args:
        step: takes no arguments.
        generators: whose random numbers it draws, on the GPU.

    Returns:
        What runs it, and its result, which each run overwrites.

    Raises:
        RuntimeError: the step reads something back from the device, or does what else a graph cannot hold.
    """
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    try:
        with torch.cuda.graph(graph):
            result = step()
    except Exception:
        # A capture that failed leaves generators as if it went on, and they refuse to draw outside of it
        for generator in (torch.cuda.default_generators[torch.cuda.current_device()], *generators):
            generator.graphsafe_set_state(generator.clone_state())
        raise
    return graph.replay, result


def _fixed(optimizer: Optimizer, device: torch.device) -> list[Any]:
    """All that a recorded step knows from Python or by address: options, parameters, states."""
    found: list[Any] = [getattr(optimizer, "noise_floor", None)]
    for group in optimizer.param_groups:
        found += [group, *(value for name, value in group.items() if name not in ("params", "lr"))]
        found.append(group["lr"] if _is_on(group["lr"], device) else None)
        for p in group["params"]:
            states = optimizer.state.get(p, {}).values()
            found += [p, p.requires_grad, *(value for value in states if isinstance(value, Tensor))]
    return found


def _is_on(value: Any, device: torch.device) -> bool:
    return isinstance(value, Tensor) and value.device == device


def _is_same(one: Any, other: Any) -> bool:
    """Tensors and groups are themselves alone: a state that is loaded makes groups anew."""
    return one is other or not (isinstance(one, Tensor | dict) or isinstance(other, Tensor | dict) or one != other)


def _why_not(optimizer: Optimizer) -> str | None:
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return "the optimizer has hooks of its step, which a replay does not call"
    device = optimizer.param_groups[0]["params"][0].device
    return None if device.type == "cuda" else f"CUDA graphs need a GPU, and this runs on {device.type}"
