"""Sides of the losses of neighbouring methods: value and gradient, by this library and by PyTorch's autograd."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import DEVICE, Side
from prograd_fast import functional, reference

SCALE = 100.0  # CLIP's


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def _with_gradient(loss: Callable[..., Tensor], x: Tensor, *others: Tensor) -> Side:
    x = x.requires_grad_()

    def both() -> tuple[Tensor, Tensor]:
        value = loss(x, *others)
        return value.detach(), torch.autograd.grad(value, x)[0]

    return both


# ---- samples


def _samples(samples: int, rows: int, classes: int) -> tuple[Tensor, Tensor]:
    return _draw(samples, rows, classes), torch.arange(rows, device=DEVICE) * 7 % classes


def _log_mean_exp(logits: Tensor, labels: Tensor) -> Tensor:
    return F.nll_loss(logits.log_softmax(2).logsumexp(0) - math.log(len(logits)), labels)


SAMPLES: dict[str, Callable[[int, int, int], Side]] = {
    "sampled_cross_entropy": lambda *size: _with_gradient(functional.sampled_cross_entropy, *_samples(*size)),
    "log-mean-exp, autograd": lambda *size: _with_gradient(_log_mean_exp, *_samples(*size)),
}

# ---- differences


def _differences(loss: Callable[..., Tensor]) -> Callable[[int], Side]:
    return lambda size: _with_gradient(loss, 4 * _draw(size // 136, 68, 2), 4 * _draw(size // 136, 68, 2, seed=1))


SQUARED_ERRORS: dict[str, Callable[[int], Side]] = {
    "squared_error": _differences(functional.squared_error),
    "mse_loss, autograd": _differences(F.mse_loss),
}
SOFT_WINGS: dict[str, Callable[[int], Side]] = {
    "soft_wing": _differences(functional.soft_wing),
    "formula, autograd": _differences(reference.soft_wing),
}

# ---- text to text


def _text_to_text(loss: Callable[..., Tensor]) -> Callable[[int, int, int], Side]:
    def build(templates: int, classes: int, width: int) -> Side:
        learned, written = (
            F.normalize(_draw(classes, width), dim=1),
            F.normalize(_draw(templates, classes, width), dim=2),
        )
        return _with_gradient(lambda u: loss(u, written, SCALE), learned)

    return build


TEXT_TO_TEXT: dict[str, Callable[[int, int, int], Side]] = {
    "text_to_text_loss": _text_to_text(functional.text_to_text_loss),
    "formula, autograd": _text_to_text(reference.text_to_text_loss),
}
