"""The operators of the registry on a device, and the prompt step: what the parts of `tools.gpu_check` run."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import prograd_fast as pf
from benchmarks import prompts
from benchmarks.measure import Side
from prograd_fast import backends
from tools.gpu_work import MissingError, Work

OPERATORS = torch.ops.prograd_fast
SMALL_TOWER = {"width": 64, "layers": 2}  # for a CPU

Stepping = tuple[Side, list[Tensor]]  # a step, and what it changes


def use(work: Work, backend: str) -> str:
    """Choose a backend; on a CPU the compiled kernels stand in for it. Returns the name of what runs."""
    if work.fake:
        return "cpu" if backends.missing("cpu") is None else "reference"
    reason = backends.missing(backend)
    if reason is not None:
        raise MissingError(f"{backend}: {reason}")
    backends.use(backend)
    return backend


def with_kernels(device: str) -> set[str]:
    """The operators of the registry that write their results and have kernels for a device; others are made of them."""
    key = "CPU" if device == "cpu" else "CUDA"
    defined = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("prograd_fast::")}
    names = {name for name in defined if torch._C._dispatch_has_kernel_for_dispatch_key(name, key)}
    return {name for name in (full.split("::")[1].split(".")[0] for full in names or defined) if writes(name)}


def writes(name: str) -> list[str]:
    """The arguments that an operator writes to, by its schema."""
    arguments = getattr(OPERATORS, name).default._schema.arguments
    return [a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write]


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors of nested lists and dictionaries, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from tensors_in(one)


def moved(value: Any, device: str) -> Any:
    """The same call with its tensors on a device; views of one memory, as the tower has them, stay views of one."""
    memory: dict[int, Tensor] = {}

    def move(one: Any) -> Any:
        if isinstance(one, dict):
            return {key: move(x) for key, x in one.items()}
        if isinstance(one, list | tuple):
            return type(one)(move(x) for x in one)
        if not isinstance(one, Tensor):
            return one
        storage = one.untyped_storage()
        whole = torch.empty(0, dtype=one.dtype).set_(storage)  # type: ignore[call-overload]
        there = memory.setdefault(storage.data_ptr(), whole.to(device, copy=True))
        return there.as_strided(one.shape, one.stride(), one.storage_offset())

    return move(value)


def written(name: str, call: Any) -> list[tuple[str, Tensor]]:
    """Names and tensors of what an operator has written to."""
    arguments = getattr(OPERATORS, name).default._schema.arguments
    given = dict(zip((argument.name for argument in arguments), call[0], strict=False)) | call[1]
    return [(argument, tensor) for argument in writes(name) for tensor in tensors_in(given.get(argument))]


def prompt_step(classes: int, model: dict[str, Any]) -> Stepping:
    """A step of prompt tuning on CLIP's text tower with random weights."""
    net = prompts.net_of(classes, **model)
    images, labels = prompts._pictures(prompts.BATCH, classes, net.tower.dtype)
    teacher = pf.clip.ZeroShotTeacher(net.model, prompts.TOKENIZER, net.class_names, prompts.TEMPLATE).logits(images)
    criterion, opt = pf.DualLoss(), pf.ProGradSGD([net.prompt.ctx], lr=prompts.LR, momentum=prompts.MOMENTUM)
    return lambda: opt.backward_and_update(*criterion(net.logits(images), teacher, labels)), [net.prompt.ctx.detach()]
