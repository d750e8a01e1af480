"""What the public functions refuse, each with one message: what, where, expected, got, remedy."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prograd_fast.reference.losses import GENERAL_LOSSES, REDUCTIONS


def check_dual_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    teacher_offset: Tensor | None,
    task_weight: Tensor | None,
    general_weight: Tensor | None,
) -> None:
    """Raise TypeError or ValueError for tensors that `functional.dual_loss` has no result for."""
    _check_matrix("student_logits", student_logits, "(batch, classes)")
    _check_matrix("teacher_logits", teacher_logits, "(batch, classes)")
    if teacher_logits.shape != student_logits.shape:
        raise ValueError(
            f"teacher_logits: expected the student's shape {tuple(student_logits.shape)}, got "
            f"{tuple(teacher_logits.shape)}. Build the teacher with the same class names."
        )
    rows, classes = student_logits.shape
    _check_fixed("teacher_logits", teacher_logits)
    _check_rows(labels, rows, classes, teacher_offset, task_weight, general_weight)
    _check_devices(
        student_logits=student_logits,
        teacher_logits=teacher_logits,
        labels=labels,
        teacher_offset=teacher_offset,
        task_weight=task_weight,
        general_weight=general_weight,
    )


def check_linear_dual_loss(
    features: Tensor,
    student_classes: Tensor,
    teacher_classes: Tensor,
    labels: Tensor,
    teacher_offset: Tensor | None,
    task_weight: Tensor | None,
    general_weight: Tensor | None,
) -> None:
    """Raise TypeError or ValueError for tensors that `functional.linear_dual_loss` has no result for."""
    _check_matrix("features", features, "(batch, width)")
    _check_matrix("student_classes", student_classes, "(classes, width)")
    _check_matrix("teacher_classes", teacher_classes, "(classes, width)")
    if student_classes.shape[1] != features.shape[1]:
        raise ValueError(
            f"student_classes: expected the width of the features, {features.shape[1]}, got "
            f"{student_classes.shape[1]}. Take both from the same model."
        )
    if teacher_classes.shape != student_classes.shape:
        raise ValueError(
            f"teacher_classes: expected the student's shape {tuple(student_classes.shape)}, got "
            f"{tuple(teacher_classes.shape)}. Build the teacher with the same class names."
        )
    _check_fixed("features", features)
    _check_fixed("teacher_classes", teacher_classes)
    _check_rows(labels, features.shape[0], student_classes.shape[0], teacher_offset, task_weight, general_weight)
    _check_devices(
        features=features,
        student_classes=student_classes,
        teacher_classes=teacher_classes,
        labels=labels,
        teacher_offset=teacher_offset,
        task_weight=task_weight,
        general_weight=general_weight,
    )


def check_xerm(
    student_logits: Tensor,
    factual_logits: Tensor,
    labels: Tensor,
    counterfactual_logits: Tensor | None,
    offset: Tensor | None,
) -> None:
    """Raise TypeError or ValueError for arguments that `losses.XERM` has no result for."""
    _check_floating("student_logits", student_logits)
    if student_logits.dim() not in (2, 3):
        raise ValueError(
            "student_logits: expected shape (batch, classes) or (experts, batch, classes), got "
            f"{tuple(student_logits.shape)}."
        )
    if (counterfactual_logits is None) == (offset is None):
        raise ValueError(
            "counterfactual_logits: expected either these or an offset of XERM, got "
            f"{'neither' if offset is None else 'both'}. PC and RIDE have an offset, TDE has counterfactual logits."
        )
    for name, logits in (("factual_logits", factual_logits), ("counterfactual_logits", counterfactual_logits)):
        if logits is not None:
            _check_floating(name, logits)
            _check_fixed(name, logits)
            if logits.shape != student_logits.shape:
                raise ValueError(
                    f"{name}: expected the student's shape {tuple(student_logits.shape)}, got {tuple(logits.shape)}."
                )
    _check_labels(labels, student_logits.shape[-2])


def check_srd(student_features: Tensor, teacher_features: Tensor, cross_logits: Tensor, teacher_logits: Tensor) -> None:
    """Raise TypeError or ValueError for arguments that `losses.SRD` has no result for."""
    for name, features in (("student_features", student_features), ("teacher_features", teacher_features)):
        _check_floating(name, features)
        if features.dim() != 4:
            raise ValueError(f"{name}: expected shape (batch, channels, height, width), got {tuple(features.shape)}.")
    if student_features.shape[:2] != teacher_features.shape[:2]:
        raise ValueError(
            f"student_features: expected the teacher's batch and channels {tuple(teacher_features.shape[:2])}, got "
            f"{tuple(student_features.shape[:2])}. They come from the connector."
        )
    _check_matrix("cross_logits", cross_logits, "(batch, classes)")
    _check_matrix("teacher_logits", teacher_logits, "(batch, classes)")
    _check_fixed("teacher_features", teacher_features)
    _check_fixed("teacher_logits", teacher_logits)


def check_text_to_text_loss(class_features: Tensor, template_features: Tensor) -> None:
    """Raise TypeError or ValueError for arguments that `functional.text_to_text_loss` has no result for."""
    _check_matrix("class_features", class_features, "(classes, width)")
    _check_floating("template_features", template_features)
    shape = tuple(class_features.shape)
    if template_features.dim() != 3 or template_features.shape[1:] != class_features.shape:
        raise ValueError(
            f"template_features: expected shape (templates, {shape[0]}, {shape[1]}), each template filled with each of "
            f"the names, got {tuple(template_features.shape)}."
        )
    _check_fixed("template_features", template_features)
    _check_devices(class_features=class_features, template_features=template_features)


def check_samples(logits: Tensor) -> None:
    """Raise TypeError or ValueError for logits that `functional.sampled_log_probs` has no result for."""
    _check_floating("logits", logits)
    if logits.dim() != 3 or logits.shape[0] == 0:
        raise ValueError(f"logits: expected shape (samples, batch, classes), got {tuple(logits.shape)}.")


def check_sampled_cross_entropy(logits: Tensor, labels: Tensor, reduction: str) -> None:
    """Raise TypeError or ValueError for arguments that `functional.sampled_cross_entropy` has no result for."""
    check_samples(logits)
    _check_labels(labels, logits.shape[1])
    _check_reduction(reduction)
    _check_devices(logits=logits, labels=labels)


def check_differences(prediction: Tensor, target: Tensor) -> None:
    """Raise TypeError or ValueError for a prediction and a target that have no distance."""
    _check_floating("prediction", prediction)
    _check_floating("target", target)
    if target.shape != prediction.shape:
        raise ValueError(
            f"target: expected the prediction's shape {tuple(prediction.shape)}, got {tuple(target.shape)}. "
            "Nothing is broadcast."
        )
    _check_fixed("target", target)
    _check_devices(prediction=prediction, target=target)


def check_soft_wing(omega1: float, omega2: float, epsilon: float) -> None:
    """Raise ValueError for parameters that the Soft Wing loss has no value for."""
    for name, value, usual in (("omega1", omega1, 2.0), ("omega2", omega2, 20.0), ("epsilon", epsilon, 0.5)):
        if not 0 < value < float("inf"):
            raise ValueError(f"{name}: expected a number above 0, got {value!r}. Use {usual} as the authors do.")


def check_states(params: Sequence[Tensor], **states: Sequence[Tensor]) -> None:
    """Raise ValueError unless every list of states has a tensor of each parameter's shape and device."""
    for name, tensors in states.items():
        if len(tensors) != len(params):
            raise ValueError(f"{name}: expected one tensor per parameter, got {len(tensors)} for {len(params)}.")
        for i, (param, tensor) in enumerate(zip(params, tensors, strict=True)):
            if tensor.shape != param.shape or tensor.device != param.device:
                raise ValueError(
                    f"{name}[{i}]: expected the parameter's shape {tuple(param.shape)} and device {param.device}, got "
                    f"{tuple(tensor.shape)} and {tensor.device}."
                )


def check_label_range(error: Exception, labels: Tensor, scores: Tensor, dim: int) -> None:
    """Raise ValueError that names the argument, if `error` is a kernel's complaint about a label.

    The classes are a dimension of `scores`. The kernels look at the labels anyway; on a GPU nothing here does, since
    that would wait for the device.
    """
    if "out of bounds" in str(error):
        lowest, highest = int(labels.min()), int(labels.max())
        raise ValueError(
            f"labels: expected class indices 0 ... {scores.shape[dim] - 1}, got {lowest} ... {highest}. "
            "Relabel the classes from 0 in the order of the logits."
        ) from None


def _check_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}. Use torch.as_tensor(...).")


def _check_floating(name: str, tensor: Tensor) -> None:
    _check_tensor(name, tensor)
    if not tensor.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {tensor.dtype}.")


def _check_matrix(name: str, matrix: Tensor, shape: str) -> None:
    _check_floating(name, matrix)
    if matrix.dim() != 2:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(matrix.shape)}.")


def _check_fixed(name: str, tensor: Tensor | None) -> None:
    if tensor is not None and tensor.requires_grad:
        raise ValueError(
            f"{name}: expected a tensor that is fixed, got one that requires grad; no gradient would reach it. "
            f"Pass {name}.detach()."
        )


def check_loss_options(temperature: float, general: str, reduction: str) -> None:
    """Raise TypeError or ValueError for options that no loss has."""
    if isinstance(temperature, bool) or not isinstance(temperature, int | float):
        raise TypeError(f"temperature: expected a number, got {type(temperature).__name__}. Use 1.0 as the authors do.")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature: expected a number above 0, got {temperature!r}. Use 1.0 as the authors do.")
    if general not in GENERAL_LOSSES:
        raise ValueError(f"general: expected one of {', '.join(GENERAL_LOSSES)}, got {general!r}.")
    _check_reduction(reduction)


def _check_reduction(reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {', '.join(REDUCTIONS)}, got {reduction!r}.")


def _check_labels(labels: Tensor, rows: int) -> None:
    _check_tensor("labels", labels)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels: expected integer class indices, got {labels.dtype}.")
    if labels.shape != (rows,):
        raise ValueError(f"labels: expected shape ({rows},), one index per row, got {tuple(labels.shape)}.")


def _check_rows(
    labels: Tensor,
    rows: int,
    classes: int,
    teacher_offset: Tensor | None,
    task_weight: Tensor | None,
    general_weight: Tensor | None,
) -> None:
    _check_labels(labels, rows)
    for name, tensor, size in (
        ("teacher_offset", teacher_offset, classes),
        ("task_weight", task_weight, rows),
        ("general_weight", general_weight, rows),
    ):
        if tensor is not None and tensor.shape != (size,):
            raise ValueError(f"{name}: expected shape ({size},), got {tuple(tensor.shape)}.")
        _check_fixed(name, tensor)


def _check_devices(**tensors: Any) -> None:
    devices = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    if len(set(devices.values())) > 1:
        got = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"devices: expected one for all, got {got}.")
