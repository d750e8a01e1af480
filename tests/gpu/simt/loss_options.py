"""The options that the launchers of the dual loss and of the linear dual loss have in common."""

from ctypes import Structure, c_bool, c_double, c_int, c_void_p

from torch import Tensor

from tests.gpu.simt.library import pointer


class LossOptions(Structure):
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


def loss_options(
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
) -> LossOptions:
    inputs = (labels, teacher_offset, task_weight, general_weight)
    outputs = (losses, cotangents, correct)
    return LossOptions(*map(pointer, inputs), temperature, soft_ce, reduction, *map(pointer, outputs))
