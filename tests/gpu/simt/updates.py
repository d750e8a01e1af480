"""The operators of csrc/cuda on lists of tensors, run on the CPU and compared with the reference in float64."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prograd_fast.ops.common import SCOPES
from prograd_fast.reference import projection, updates
from tests.gpu.simt.library import Guarded, Library, accumulation
from tests.tolerances import assert_close

TENSOR, ROW, GLOBAL = range(3)
CHUNK = 8192  # elements of one block: kChunk of csrc/cuda/chunks.cuh
SETTINGS: dict[str, Any] = {"lr": 0.1, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.3}


def gradients(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Pairs of gradients, every second of which conflicts."""
    generator = torch.Generator().manual_seed(len(shapes))
    task = [torch.randn(shape, generator=generator) for shape in shapes]
    general = [
        torch.randn(shape, generator=generator) + (0.5 if i % 2 else -0.5) * a
        for i, (shape, a) in enumerate(zip(shapes, task, strict=True))
    ]
    return [a.to(dtype) for a in task], [b.to(dtype) for b in general]


def doubled(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.double() for tensor in tensors]


def empty_entries(task: list[Tensor], scope: int) -> Tensor:
    units = 1 if scope == GLOBAL else sum(projection.n_units(a, SCOPES[scope]) for a in task)
    return torch.full((units, 3), math.nan, dtype=accumulation(task[0].dtype))


def check_gram(simt: Library, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, scope: int, shift: int) -> Tensor:
    task, general = gradients(shapes, dtype)
    guarded = Guarded(shift)
    entries = guarded(empty_entries(task, scope))
    simt.gram_out(guarded.list(task), guarded.list(general), scope, entries=entries)
    guarded.check()
    assert_close(entries, projection.gram(doubled(task), doubled(general), SCOPES[scope]), "formula", entries.dtype)
    return entries


class Update:
    """Everything that one fused step reads and writes, and the same step by the reference in float64."""

    def __init__(
        self,
        optimizer: str,
        shapes: Sequence[tuple[int, ...]],
        dtype: torch.dtype,
        scope: int,
        *,
        moments: torch.dtype | None = None,
        given: bool = False,
        amsgrad: bool = False,
        momentum: float = 0.9,
        first: bool = False,
        nesterov: bool = False,
        maximize: bool = False,
        lr_tensor: bool = False,
        grad_scale: float | None = None,
        found_inf: float | None = None,
        shift: int = 0,
    ) -> None:
        self.__dict__ |= {k: v for k, v in locals().items() if k != "self"}
        self.task, self.general = gradients(shapes, dtype)
        generator = torch.Generator().manual_seed(7)
        self.params = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
        n_states = (3 if amsgrad else 2) if optimizer == "adamw" else int(momentum != 0)
        self.states = [
            [torch.rand(shape, generator=generator).to(moments or dtype) for shape in shapes] for _ in range(n_states)
        ]
        self.steps = [torch.tensor(float(3 * i)) for i in range(len(shapes))] if optimizer == "adamw" else []
        self.entries = empty_entries(self.task, scope)
        units = self.entries.shape[0]
        self.coefficients = torch.randn(units, 2, dtype=self.entries.dtype, generator=generator) if given else None

    def run(self, simt: Library) -> None:
        """By the kernel, in place."""
        guarded = Guarded(self.shift)
        self.results = [guarded.list(tensors) for tensors in (self.params, *self.states)]
        self.new_entries, self.new_steps = guarded(self.entries), guarded.list(self.steps)
        gradients = guarded.list(self.task), guarded.list(self.general)
        scale = None if self.grad_scale is None else torch.tensor(self.grad_scale)
        found_inf = None if self.found_inf is None else torch.tensor(self.found_inf)
        lr_tensor = torch.tensor(SETTINGS["lr"]) if self.lr_tensor else None
        lr = -99.0 if self.lr_tensor else SETTINGS["lr"]
        common = (self.new_entries, self.coefficients, lr_tensor, lr)
        if self.optimizer == "adamw":
            states = [*self.results[1:], *([] if self.amsgrad else [[]])]
            numbers = (SETTINGS["beta1"], SETTINGS["beta2"], SETTINGS["eps"], SETTINGS["weight_decay"], 0.7)
            flags = (self.scope, self.amsgrad, self.maximize, scale, found_inf)
            simt.project_adamw_(self.results[0], *gradients, *states, self.new_steps, *common, *numbers, *flags)
        else:
            states = self.results[1:] or [[]]
            numbers = (self.momentum, 0.25, SETTINGS["weight_decay"], 0.7)
            flags = (self.scope, self.nesterov, self.maximize, self.first, scale, found_inf)
            simt.project_sgd_(self.results[0], *gradients, *states, *common, *numbers, *flags)
        guarded.check()

    def check(self) -> None:
        """Against the reference."""
        scope = SCOPES[self.scope]
        task, general = [a.double() / (self.grad_scale or 1.0) for a in self.task], doubled(self.general)
        expected_entries = projection.gram(task, general, scope)
        if self.coefficients is None:
            assert_close(self.new_entries, expected_entries, "formula", self.entries.dtype)
            coefficients = projection.prograd_coefficients(expected_entries, 0.7)
        else:
            assert self.new_entries.isnan().all(), "entries are left alone where coefficients are given"
            coefficients = self.coefficients.double()
        parts = projection.split_units(coefficients, self.task, scope)
        for i, (a, b, c) in enumerate(zip(task, general, parts, strict=True)):
            g = projection.combine(a, b, c)
            old = [tensors[i].double() for tensors in (self.params, *self.states)]
            new = self._expected(i, -g if self.maximize else g, old)
            if self.found_inf:
                new = old
            for result, value in zip(self.results, new, strict=True):
                assert_close(result[i], value, "formula", result[i].dtype)
        advance = 0 if self.found_inf else 1
        assert [float(s) for s in self.new_steps] == [float(s) + advance for s in self.steps]

    def _expected(self, i: int, g: Tensor, old: list[Tensor]) -> list[Tensor]:
        if self.optimizer == "adamw":
            p, m, v, largest = [*old, None][:4]
            betas = (SETTINGS["beta1"], SETTINGS["beta2"])
            numbers = {name: SETTINGS[name] for name in ("lr", "eps", "weight_decay")}
            step = self.steps[i].double() + 1
            new = updates.adamw(p, g, m, v, largest, step, betas=betas, **numbers)
        else:
            new = updates.sgd(
                old[0],
                g,
                old[1] if self.states else None,
                lr=SETTINGS["lr"],
                momentum=self.momentum,
                dampening=0.25,
                weight_decay=SETTINGS["weight_decay"],
                nesterov=self.nesterov,
                first=self.first,
            )
        return [tensor for tensor in new if tensor is not None]


def check_update(simt: Library, *args: Any, **options: Any) -> None:
    update = Update(*args, **options)
    update.run(simt)
    update.check()
