"""Sides of the losses: each gives both losses and both cotangents, whether one asks for them or not."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import prograd_fast as pf
from benchmarks import authors
from benchmarks.measure import DEVICE, Side
from prograd_fast.ops.registry import SHORTCUTS

SCALE = 100.0  # CLIP's
_operators = torch.ops.prograd_fast
_OPTIONS = (None, None, None)  # no offset, no weights


class Result(NamedTuple):
    """Both losses, 0-d, and both cotangents, each of the shape of what is differentiated."""

    task: Tensor
    general: Tensor
    task_cotangent: Tensor
    general_cotangent: Tensor


# ---- on logits


def logits(rows: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Student's and teacher's logits, and labels."""
    g = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(rows, classes, generator=g).to(DEVICE) for _ in range(2))
    return student, teacher, torch.randint(classes, (rows,), generator=g).to(DEVICE)


def closed_form(student: Tensor, teacher: Tensor, labels: Tensor) -> Result:
    """Losses and cotangents by formula, for torch.compile."""
    log_p, log_q = student.log_softmax(1), teacher.log_softmax(1)
    p, q = log_p.exp(), log_q.exp()
    task = -log_p.gather(1, labels.unsqueeze(1)).mean()
    general = -(q * log_p).sum(1).mean()
    one_hot = torch.arange(student.shape[1], device=student.device) == labels.unsqueeze(1)
    rows = student.shape[0]
    return Result(task, general, (p - one_hot.to(p.dtype)) / rows, (p - q) / rows)


def _by_autograd(criterion: Callable[..., tuple[Tensor, Tensor]]) -> Callable[[int, int], Side]:
    def build(rows: int, classes: int) -> Side:
        student, teacher, labels = logits(rows, classes)
        student.requires_grad_()

        def both() -> Result:
            task, general = criterion(student, teacher, labels)
            (a,) = torch.autograd.grad(task, student, retain_graph=True)
            (b,) = torch.autograd.grad(general, student)
            return Result(task, general, a, b)

        return both

    return build


def in_new_memory(rows: int, classes: int) -> Side:
    """The same where no memory of the last call waits, as at the first one."""
    both = DUAL_LOSSES["DualLoss + two autograd.grad"](rows, classes)
    release = SHORTCUTS.get("release_memory", lambda: None)  # without C++ kernels none waits

    def without() -> Result:
        release()
        return both()

    return without


def two_backwards_of_a_sum(rows: int, classes: int) -> Side:
    """Two calls of `autograd.grad` that have next to nothing to do."""
    student, _, _ = logits(rows, classes)
    total = student.requires_grad_().sum()
    return lambda: [torch.autograd.grad(total, student, retain_graph=True) for _ in range(2)]


def operator(rows: int, classes: int) -> Side:
    """`torch.ops.prograd_fast.dual_loss`, which returns the cotangents."""
    inputs = logits(rows, classes)

    def both() -> Result:
        task, general, cotangents, _ = _operators.dual_loss(*inputs, *_OPTIONS, 1.0, True, 1)
        return Result(task, general, *cotangents.unbind())

    return both


def operator_out(rows: int, classes: int) -> Side:
    """`dual_loss_out`: the same into memory that is there already."""
    inputs = logits(rows, classes)
    losses = torch.empty(2, device=DEVICE)
    cotangents = torch.empty(2, rows, classes, device=DEVICE)
    correct = torch.empty((), dtype=torch.int64, device=DEVICE)

    def both() -> Result:
        _operators.dual_loss_out(
            *inputs, *_OPTIONS, 1.0, True, 1, losses=losses, cotangents=cotangents, correct=correct
        )
        return Result(*losses.unbind(), *cotangents.unbind())

    return both


def compiled(rows: int, classes: int) -> Side:
    """The closed form through torch.compile."""
    inputs = logits(rows, classes)
    fast = torch.compile(closed_form, dynamic=False)
    return lambda: fast(*inputs)


DUAL_LOSSES: dict[str, Callable[[int, int], Side]] = {
    "dual_loss operator": operator,
    "dual_loss_out operator": operator_out,
    "DualLoss + two autograd.grad": _by_autograd(pf.DualLoss(general="soft_ce")),
    "DualLoss + two autograd.grad, new memory": in_new_memory,
    "authors, two autograd.grad": _by_autograd(authors.losses),
    "torch.compile": compiled,
}


# ---- on features


def features(rows: int, classes: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Image features, student's and teacher's class features, all unit rows, and labels."""
    g = torch.Generator().manual_seed(0)
    images, teacher = (F.normalize(torch.randn(n, width, generator=g), dim=1) for n in (rows, classes))
    student = F.normalize(teacher + 0.05 * torch.randn(classes, width, generator=g), dim=1)
    labels = torch.randint(classes, (rows,), generator=g)
    return images.to(DEVICE), student.to(DEVICE), teacher.to(DEVICE), labels.to(DEVICE)


def linear_operator(rows: int, classes: int, width: int) -> Side:
    """`torch.ops.prograd_fast.linear_dual_loss`, which never has the logits in memory."""
    inputs = features(rows, classes, width)

    def both() -> Result:
        task, general, cotangents, _ = _operators.linear_dual_loss(*inputs, *_OPTIONS, SCALE, 1.0, True, 1)
        return Result(task, general, *cotangents.unbind())

    return both


def product_loss_product(rows: int, classes: int, width: int) -> Side:
    """Matrix products to logits, `dual_loss`, and matrix products back to the class features."""
    images, student, teacher, labels = features(rows, classes, width)

    def both() -> Result:
        scaled = SCALE * images
        task, general, by_logit, _ = _operators.dual_loss(
            scaled @ student.T, scaled @ teacher.T, labels, *_OPTIONS, 1.0, True, 1
        )
        return Result(task, general, *(cotangent.T @ scaled for cotangent in by_logit))

    return both


def products_alone(rows: int, classes: int, width: int) -> Side:
    """Their four matrix products by torch, into memory that is there, and nothing else: what bounds the others."""
    images, student, teacher, _ = features(rows, classes, width)
    logits, cotangents = images.new_empty(rows, classes), images.new_empty(classes, width)

    def all_four() -> None:
        for weights in (student, teacher):
            torch.mm(images, weights.T, out=logits)
            torch.mm(logits.T, images, out=cotangents)

    return all_four


LINEAR_DUAL_LOSSES: dict[str, Callable[[int, int, int], Side]] = {
    "linear_dual_loss operator": linear_operator,
    "product + dual_loss + product": product_loss_product,
}
