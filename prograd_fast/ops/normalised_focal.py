"""The normalised focal loss of masks, and its gradient in closed form."""

from typing import Any

import torch
from torch import Tensor

from prograd_fast.ops.checks import Arguments, check_devices, check_floating, check_positive
from prograd_fast.ops.common import accumulation_dtype, empty
from prograd_fast.ops.losses import define_loss, losses_of

# ---- formula


def normalised_focal_loss_formula(
    logits: Tensor, labels: Tensor, alpha: float = 0.5, gamma: float = 2.0, max_mult: float = -1.0, eps: float = 1e-12
) -> Tensor:
    """Normalised focal loss of each picture, for any float dtype; see `normalised_focal_loss`."""
    return _loss(_Pixels(logits, labels, alpha, gamma, max_mult, eps))


class _Pixels:
    """Of each pixel: s = ±1, p, q = 1 - p, α_y, weight m·q^γ, ln min(p + ε, 1); which count, and how many."""

    def __init__(self, logits: Tensor, labels: Tensor, alpha: float, gamma: float, max_mult: float, eps: float) -> None:
        self.gamma, self.max_mult, self.eps = gamma, max_mult, eps
        self.count = labels != -1
        z = logits.to(accumulation_dtype(logits)).where((labels == 0) | (labels == 1) | ~self.count, torch.nan)
        self.n = self.count.sum(1, keepdim=True).clamp(min=1)
        self.sign = (labels == 1).to(z.dtype) * 2 - 1
        self.alpha = alpha * (1 + self.sign) / 2 + (1 - alpha) * (1 - self.sign) / 2
        self.p, self.q = (self.sign * z).sigmoid(), (-self.sign * z).sigmoid().where(self.count, 0.5)
        weight = self.q.pow(gamma).where(self.count, 0.0)
        weight = weight * (self.count.sum(1, keepdim=True) / (weight.detach().sum(1, keepdim=True) + eps))
        self.weight = weight.clamp(max=max_mult) if max_mult > 0 else weight
        near = (eps - self.q.clamp(max=0.5)).clamp(max=0.0).log1p()  # where p has lost the digits that q has
        self.log_p = near.where(self.q < 0.5, (self.p + eps).log())


def _loss(x: _Pixels) -> Tensor:
    return -(x.alpha * x.weight * x.log_p).where(x.count, 0.0).sum(1) / x.n[:, 0]


def _cotangents(x: _Pixels) -> Tensor:
    """The derivative, (B, P): -s·α_y·m·q^γ·(q - γ·p·ln p) / n with m fixed, but for ε and where `max_mult` cuts."""
    of_log = (x.p * x.q / (x.p + x.eps)).where(x.q > x.eps, 0.0)  # elsewhere p + ε is cut to 1
    of_weight = -x.gamma * x.p
    if x.max_mult > 0:
        of_weight = of_weight.where(x.weight < x.max_mult, 0.0)
    return (-x.sign * x.alpha * x.weight * (of_log + of_weight * x.log_p)).where(x.count, 0.0) / x.n


# ---- operator
#
# normalised_focal_loss  logits (B, P), labels (B, P) int64; losses (B,); cotangents (B, P)


def _check(call: dict[str, Any]) -> None:
    arguments, shape = Arguments(call["logits"]), tuple(call["logits"].shape)
    arguments.sizes("logits", call["logits"], "pictures, pixels")
    arguments.integers("labels", call["labels"], shape)
    for name in ("gamma", "eps"):
        check_positive(name, call[name])
    arguments.result("losses", call.get("losses"), shape[:1])
    arguments.result("cotangents", call.get("cotangents"), shape)


def _kernel(logits: Tensor, labels: Tensor, *options: float, losses: Tensor, cotangents: Tensor) -> None:
    if labels.is_cpu and (wrong := labels[(labels < -1) | (labels > 1)]).numel():
        raise ValueError(f"labels: expected 1, 0 or -1, got {int(wrong[0])}. Use 1 for the object, -1 to ignore.")
    pixels = _Pixels(logits, labels, *options)
    losses.copy_(_loss(pixels))
    cotangents.copy_(_cotangents(pixels))


def _empty(logits: Tensor, labels: Tensor, *options: float) -> tuple[Tensor, ...]:
    dtype = accumulation_dtype(logits)
    return logits.new_empty(logits.shape[:1], dtype=dtype), empty(logits, logits.shape, dtype)


define_loss(
    "normalised_focal_loss",
    "Tensor logits, Tensor labels, float alpha, float gamma, float max_mult, float eps",
    ("losses", "cotangents"),
    "Tensor losses, Tensor cotangents",
    kernel=_kernel,
    empty=_empty,
    formula=normalised_focal_loss_formula,
    check=_check,
    differentiable=0,
    per_row=True,
)

# ---- function


def normalised_focal_loss(
    logits: Tensor, labels: Tensor, alpha: float = 0.5, gamma: float = 2.0, max_mult: float = -1.0, eps: float = 1e-12
) -> Tensor:
    """Focal loss of a mask whose weights add up to the number of its pixels; one for each picture.

        p = probability of the label,   β = (1 - p)^γ,   m = n / (Σ β + ε), fixed
        loss = -1/n Σ α_y·min(m·β, max_mult)·ln min(p + ε, 1)     over the n pixels that count

    Differentiable in the logits; the kernel has the first derivative, further ones go through the formula. Source:
    Sofiiuk, Barinova and Konushin, AdaptIS (arXiv:1909.07829); as in `uncbiag/SimpleClick`, isegm/model/losses.py.

    Args:
        logits: z, (B, ...), a picture in each row; float64, float32, bfloat16 or float16.
        labels: y, the same shape, integers: 1 object, 0 background, -1 ignored. Another one is an error on a CPU; on a
            GPU, where nobody waits to look, it makes NaN of its picture's loss.
        alpha: weight of the object; the background has 1 - α (default: 0.5, SimpleClick's; its class has 0.25).
        gamma: γ > 0 (default: 2.0).
        max_mult: largest m·β, where above 0 (default: -1.0, any).
        eps: ε > 0 (default: 1e-12).

    Returns:
        (B,), float32 or wider; 0 where no pixel counts.

    Raises:
        TypeError: logits are not floating point, or labels are not integers.
        ValueError: shapes or devices differ, γ or ε is not above 0, or (on a CPU) a label is none of these.
    """
    check_floating("logits", logits)
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"labels: expected integers 1, 0 and -1, got {labels.dtype}.")
    if logits.dim() < 2 or labels.shape != logits.shape:
        raise ValueError(
            f"labels: expected the logits' shape, a picture in each row, got {tuple(labels.shape)} for "
            f"{tuple(logits.shape)}."
        )
    check_devices(logits=logits, labels=labels)
    check_positive("gamma", gamma)
    check_positive("eps", eps)
    rows = logits.flatten(1), labels.flatten(1).long()
    losses, *_ = losses_of("normalised_focal_loss", *rows, float(alpha), float(gamma), float(max_mult), float(eps))
    return losses
