"""The CUDA kernels on the CPU: compiles csrc/cuda with g++ through simt.h, and calls the result with torch tensors.

A `Library` has the operators of `prograd_fast.ops` as methods, with the same names and arguments.
"""

import ctypes
import os
from collections.abc import Sequence
from ctypes import Structure, byref, c_bool, c_char_p, c_double, c_int, c_int64, c_uint, c_uint64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from tests.gpu.simt.build import compile_cpp
from tests.paths import REPOSITORY

ORDERS = ("random", "greedy", "reverse")
STORAGES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class SimtError(Exception):
    """A kernel did what a GPU would punish: the message of simt.h."""


class _Tensor(Structure):
    _fields_ = (
        ("task", c_void_p),
        ("general", c_void_p),
        ("param", c_void_p),
        ("state", c_void_p * 3),
        ("step", c_void_p),
        ("units", c_int64),
        ("unit_size", c_int64),
    )


class _Projection(Structure):
    _fields_ = (
        ("scope", c_int),
        ("coefficients", c_void_p),
        ("entries", c_void_p),
        ("lambda_", c_double),
        ("grad_scale", c_void_p),
        ("found_inf", c_void_p),
        ("maximize", c_bool),
    )


class _LearningRate(Structure):
    _fields_ = (("value", c_double), ("tensor", c_void_p))


class _AdamW(Structure):
    _fields_ = (
        ("lr", _LearningRate),
        ("beta1", c_double),
        ("beta2", c_double),
        ("eps", c_double),
        ("weight_decay", c_double),
    )


class _SGD(Structure):
    _fields_ = (
        ("lr", _LearningRate),
        ("momentum", c_double),
        ("dampening", c_double),
        ("weight_decay", c_double),
        ("nesterov", c_bool),
        ("first", c_bool),
    )


class _Losses(Structure):
    _fields_ = (
        ("labels", c_void_p),
        ("teacher_offset", c_void_p),
        ("task_weight", c_void_p),
        ("general_weight", c_void_p),
        ("temperature", c_double),
        ("soft_ce", c_bool),
        ("reduction", c_int),
        ("losses", c_void_p),
        ("cotangents", c_void_p),
        ("correct", c_void_p),
    )


class _Difference(Structure):
    _fields_ = (
        ("soft_wing", c_bool),
        ("omega1", c_double),
        ("omega2", c_double),
        ("epsilon", c_double),
        ("factor", c_double),
        ("loss", c_void_p),
        ("cotangents", c_void_p),
    )


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class Library:
    """The operators, compiled from one source tree.

    Args:
        csrc: the folder with math.h and cuda/.
        kernels: which of csrc/cuda/*.cu to compile; operators of the others must not be called.
    """

    def __init__(self, csrc: Path = REPOSITORY / "csrc", kernels: str = "*") -> None:
        here = Path(__file__).parent
        sources = [*sorted((csrc / "cuda").glob(f"{kernels}.cu")), here / "harness.cpp"]
        self._library = ctypes.CDLL(str(compile_cpp(sources, [here], "kernels.so")), mode=os.RTLD_LAZY)
        self._library.simt_schedule.argtypes = (c_int, c_uint64, c_uint)
        self.schedule("random", 0)

    def schedule(self, order: str, seed: int, resident_blocks: int = 8) -> None:
        """How the following launches are run; see simt.h."""
        self._library.simt_schedule(ORDERS.index(order), seed, resident_blocks)

    def launches(self) -> int:
        """How many kernels were launched since the last call."""
        return self._library.simt_launches()

    def _call(self, name: str, *arguments: object) -> None:
        function = getattr(self._library, f"simt_{name}")
        function.restype = c_char_p
        message = function(*arguments)
        if message is not None:
            raise SimtError(message.decode())

    def gram_out(self, task: list[Tensor], general: list[Tensor], scope: int, *, entries: Tensor) -> None:
        tensors = _tensors(scope, task, general)
        self._call("gram", STORAGES.index(task[0].dtype), tensors, len(task), scope, c_void_p(entries.data_ptr()))

    def project_(self, task: list[Tensor], general: list[Tensor], coefficients: Tensor, scope: int) -> None:
        tensors = _tensors(scope, task, general)
        storage = STORAGES.index(task[0].dtype)
        self._call("project", storage, tensors, len(task), scope, c_void_p(coefficients.data_ptr()))

    def project_adamw_(
        self,
        params: list[Tensor],
        task: list[Tensor],
        general: list[Tensor],
        exp_avgs: list[Tensor],
        exp_avg_sqs: list[Tensor],
        max_exp_avg_sqs: list[Tensor],
        steps: list[Tensor],
        entries: Tensor,
        coefficients: Tensor | None,
        lr_tensor: Tensor | None,
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        lambda_: float,
        scope: int,
        amsgrad: bool,
        maximize: bool,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        assert bool(max_exp_avg_sqs) == amsgrad
        tensors = _tensors(scope, task, general, params, [exp_avgs, exp_avg_sqs, max_exp_avg_sqs], steps)
        projection = _Projection(
            scope,
            _pointer(coefficients),
            entries.data_ptr(),
            lambda_,
            _pointer(grad_scale),
            _pointer(found_inf),
            maximize,
        )
        settings = _AdamW(_LearningRate(lr, _pointer(lr_tensor)), beta1, beta2, eps, weight_decay)
        storages = (STORAGES.index(params[0].dtype), STORAGES.index(exp_avgs[0].dtype))
        self._call("adamw", *storages, tensors, len(task), byref(projection), byref(settings))

    def project_sgd_(
        self,
        params: list[Tensor],
        task: list[Tensor],
        general: list[Tensor],
        momentum_buffers: list[Tensor],
        entries: Tensor,
        coefficients: Tensor | None,
        lr_tensor: Tensor | None,
        lr: float,
        momentum: float,
        dampening: float,
        weight_decay: float,
        lambda_: float,
        scope: int,
        nesterov: bool,
        maximize: bool,
        first: bool,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        tensors = _tensors(scope, task, general, params, [momentum_buffers])
        projection = _Projection(
            scope,
            _pointer(coefficients),
            entries.data_ptr(),
            lambda_,
            _pointer(grad_scale),
            _pointer(found_inf),
            maximize,
        )
        settings = _SGD(_LearningRate(lr, _pointer(lr_tensor)), momentum, dampening, weight_decay, nesterov, first)
        states = momentum_buffers or params
        storages = (STORAGES.index(params[0].dtype), STORAGES.index(states[0].dtype))
        self._call("sgd", *storages, tensors, len(task), byref(projection), byref(settings))

    def dual_loss_out(
        self, student: Tensor, teacher: Tensor, *options: object, losses: Tensor, cotangents: Tensor, correct: Tensor
    ) -> None:
        packed = _losses(*options, losses, cotangents, correct)  # type: ignore[arg-type]
        pointers = (c_void_p(student.data_ptr()), c_void_p(teacher.data_ptr()))
        sizes = (c_int64(student.shape[0]), c_int64(student.shape[1]))
        self._call("dual_loss", STORAGES.index(student.dtype), *pointers, *sizes, byref(packed))

    def linear_dual_loss_out(
        self,
        features: Tensor,
        student_classes: Tensor,
        teacher_classes: Tensor | None,
        labels: Tensor,
        teacher_offset: Tensor | None,
        task_weight: Tensor | None,
        general_weight: Tensor | None,
        scale: float,
        *options: object,
        losses: Tensor,
        cotangents: Tensor,
        correct: Tensor,
    ) -> None:
        weights = (teacher_offset, task_weight, general_weight)
        packed = _losses(labels, *weights, *options, losses, cotangents, correct)  # type: ignore[arg-type]
        pointers = (c_void_p(_pointer(x)) for x in (features, student_classes, teacher_classes))
        sizes = (c_int64(features.shape[0]), c_int64(student_classes.shape[0]), c_int64(features.shape[1]))
        storage = STORAGES.index(features.dtype)
        self._call("linear_dual_loss", storage, *pointers, *sizes, c_double(scale), byref(packed))

    def sampled_cross_entropy_out(
        self, logits: Tensor, labels: Tensor, reduction: int, *, losses: Tensor, cotangents: Tensor
    ) -> None:
        sizes = map(c_int64, logits.shape)
        inputs, outputs = (logits, labels), (losses, cotangents)
        before, after = ((c_void_p(x.data_ptr()) for x in tensors) for tensors in (inputs, outputs))
        self._call("sampled_cross_entropy", STORAGES.index(logits.dtype), *before, *sizes, reduction, *after)

    def sampled_log_probs_out(self, logits: Tensor, *, log_probs: Tensor) -> None:
        before, after = (c_void_p(x.data_ptr()) for x in (logits, log_probs))
        self._call("sampled_log_probs", STORAGES.index(logits.dtype), before, *map(c_int64, logits.shape), after)

    def difference_loss_out(
        self, prediction: Tensor, target: Tensor, *options: object, loss: Tensor, cotangents: Tensor
    ) -> None:
        packed = _Difference(*options, loss.data_ptr(), cotangents.data_ptr())
        pointers = (c_void_p(x.data_ptr()) for x in (prediction, target))
        size = c_int64(prediction.numel())
        self._call("difference_loss", STORAGES.index(prediction.dtype), *pointers, size, byref(packed))


def _losses(
    labels: Tensor,
    teacher_offset: Tensor | None,
    task_weight: Tensor | None,
    general_weight: Tensor | None,
    temperature: float,
    soft_ce: bool,
    reduction: int,
    losses: Tensor,
    cotangents: Tensor,
    correct: Tensor,
) -> _Losses:
    inputs = (labels, teacher_offset, task_weight, general_weight)
    outputs = (losses, cotangents, correct)
    return _Losses(*map(_pointer, inputs), temperature, soft_ce, reduction, *map(_pointer, outputs))


def _tensors(
    scope: int,
    task: list[Tensor],
    general: list[Tensor],
    params: Sequence[Tensor] = (),
    states: Sequence[list[Tensor]] = (),
    steps: Sequence[Tensor] = (),
) -> ctypes.Array[_Tensor]:
    tensors = (_Tensor * len(task))()
    for i, tensor in enumerate(tensors):
        tensor.task, tensor.general = task[i].data_ptr(), general[i].data_ptr()
        tensor.param = params[i].data_ptr() if params else None
        for k, state in enumerate(states):
            tensor.state[k] = state[i].data_ptr() if state else None
        tensor.step = steps[i].data_ptr() if steps else None
        tensor.units = task[i].shape[0] if scope == 1 and task[i].dim() else 1
        tensor.unit_size = task[i].numel() // tensor.units if tensor.units else 0
    return tensors


def accumulation(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class Guarded:
    """Tensors in buffers of their own, with values around them that no kernel may change.

    Args:
        shift: elements by which they miss a 16-byte boundary.
    """

    def __init__(self, shift: int = 0) -> None:
        self._shift = shift
        self._buffers: list[tuple[Tensor, int, int]] = []

    def __call__(self, tensor: Tensor) -> Tensor:
        start = 16 + self._shift
        buffer = torch.full((tensor.numel() + 40,), 77, dtype=tensor.dtype)
        view = buffer[start : start + tensor.numel()].view(tensor.shape)
        self._buffers.append((buffer, start, tensor.numel()))
        return view.copy_(tensor)

    def list(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [self(tensor) for tensor in tensors]

    def check(self) -> None:
        for buffer, start, size in self._buffers:
            outside = torch.cat([buffer[:start], buffer[start + size :]])
            assert bool((outside == 77).all()), "write outside of a tensor"
