"""Losses of logits that features and class features give, on GPUs: products of the vendor's library, chunk by chunk.

For each chunk of rows x, with the class features W of the student and of the teacher:

    logits = scale · x Wᵀ                      one product each, into memory that the chunks share
    losses, d = `dual_loss_out` of the logits  the kernel in use; `sampled_cross_entropy_out` without a teacher
    cotangents += scale · dᵀ x                 one product of a batch, with the factor 1/B of a mean

Three products a chunk, two without a teacher, and the loss; 8·B·C·D floating-point operations, 4 without a teacher: no
logits are computed twice. Nothing is read back. Both GPU backends use it, and it runs on any device. This is the way of
Liger-Kernel's fused linear cross-entropy (arXiv:2410.10989), for two losses, and with chunks of a fixed size in bytes.

Precision. Products add up in float32, and give float32:
* float64: in float64.
* float32: float32 in full, unless PyTorch is told to use TF32 (`torch.backends.cuda.matmul`).
* bfloat16, float16: tensor cores read what is stored. The logits are not rounded; their cotangents are, to the storage
  dtype, before they are multiplied. In float16 the factor of a mean comes after that, so that none of them is lost, and
  weights (times T, of the general loss) must stay below 65504. PyTorch has such products on CUDA since 2.8; where it
  has none, on a CPU too, the matrices are converted to float32: right, and slower.
* dtypes that differ: all are converted to the one that holds them.

The sums over the chunks have a fixed order; within a product it is the library's, which is the same from run to run.
"""

from collections.abc import Iterator, Sequence
from functools import reduce

import torch
from torch import Tensor

from prograd_fast.ops.common import REDUCTIONS
from prograd_fast.ops.row_chunks import multiplies_as_stored, multiply, row_chunks

# A matrix of logits of one chunk takes at most this much; with the teacher's and the cotangents up to five times. For
# 21,841 classes that is 768 rows. The more rows, the less often the cotangents of the classes are read and written
# again: with fewer than about 600, an H100 would wait for them longer than for the products (model, not measured).
CHUNK_BYTES = 64 << 20

_NONE, _MEAN, _SUM = map(REDUCTIONS.index, ("none", "mean", "sum"))


def linear_dual_loss_out(
    features: Tensor,
    student_classes: Tensor,
    teacher_classes: Tensor,
    labels: Tensor,
    teacher_offset: Tensor | None,
    task_weight: Tensor | None,
    general_weight: Tensor | None,
    scale: float,
    temperature: float,
    soft_ce: bool,
    reduction: int,
    *,
    losses: Tensor,
    cotangents: Tensor,
    correct: Tensor,
) -> None:
    """The operator `linear_dual_loss_out`."""
    products = _Products(features, (student_classes, teacher_classes), scale, reduction)
    total, hits = (_Sum(result, len(products.chunks)) for result in (losses, correct))
    offset = None if teacher_offset is None else teacher_offset.to(products.wide)  # once, not in every chunk
    for k, (rows, (student, teacher), by_logit) in enumerate(products.through(cotangents)):
        weights = (None if weight is None else weight[rows] for weight in (task_weight, general_weight))
        torch.ops.prograd_fast.dual_loss_out(
            *(student, teacher, labels[rows], offset, *weights, temperature, soft_ce, products.reduction),
            losses=losses[:, rows] if reduction == _NONE else total.parts[k],
            cotangents=by_logit,
            correct=hits.parts[k],
        )
    if reduction != _NONE:
        total.add_up(products.divisor)
    hits.add_up()


def linear_cross_entropy_out(
    features: Tensor, classes: Tensor, labels: Tensor, scale: float, *, loss: Tensor, cotangents: Tensor
) -> None:
    """The operator `linear_cross_entropy_out`."""
    products = _Products(features, (classes,), scale, _MEAN)
    total = _Sum(loss, len(products.chunks))
    for k, (rows, logits, by_logit) in enumerate(products.through(cotangents.unsqueeze(0))):
        torch.ops.prograd_fast.sampled_cross_entropy_out(  # of one sample
            logits, labels[rows], products.reduction, losses=total.parts[k], cotangents=by_logit
        )
    total.add_up(products.divisor)


OPERATORS = {
    operator.__name__: torch.no_grad()(operator) for operator in (linear_dual_loss_out, linear_cross_entropy_out)
}


class _Products:
    """The products of one call.

    Args:
        features: (B, D).
        classes: class features, (C, D), of each kind of logits; M of them.
        scale: of the logits.
        reduction: of the losses.

    Attributes:
        wide: the dtype of logits and sums.
        chunks: the rows of each chunk; one without rows, if there are none.
        reduction: of the losses of a chunk.
        divisor: of their sum.
    """

    def __init__(self, features: Tensor, classes: Sequence[Tensor], scale: float, reduction: int) -> None:
        common = reduce(torch.promote_types, (matrix.dtype for matrix in classes), features.dtype)
        self.wide = torch.promote_types(common, torch.float32)
        dtype = common if multiplies_as_stored(features.device, common) else self.wide
        self.features, self.classes = features.to(dtype), [matrix.to(dtype) for matrix in classes]
        self.scale = scale
        self.chunks = list(row_chunks(len(features), len(classes[0]) * self.wide.itemsize, CHUNK_BYTES))
        # in float16 the cotangents of a mean would be too small
        late = reduction == _MEAN and (len(self.chunks) > 1 or dtype == torch.float16)
        self.reduction, self.divisor = (_SUM, len(features)) if late else (reduction, 1)

    def through(self, cotangents: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Go through the chunks.

        Args:
            cotangents: (M, C, D), to write to: of the class features.

        Yields:
            The R rows of a chunk; their logits, (M, R, C); and room for the cotangents of these, of the same shape,
            which are read when the next chunk is asked for.
        """
        kinds, n_classes = len(self.classes), len(self.classes[0])
        room = kinds * n_classes * self.chunks[0].stop
        all_logits, all_by_logit = self.features.new_empty(room, dtype=self.wide), self.features.new_empty(room)
        sums = cotangents if cotangents.dtype == self.wide else torch.empty_like(cotangents, dtype=self.wide)
        for rows in self.chunks:
            x = self.features[rows]
            logits, by_logit = (
                memory[: kinds * len(x) * n_classes].view(kinds, len(x), n_classes)
                for memory in (all_logits, all_by_logit)
            )
            for matrix, product in zip(self.classes, logits, strict=True):
                multiply(x, matrix.mT, product, 0.0, self.scale)
            yield rows, logits, by_logit
            earlier = 1.0 if rows.start else 0.0
            multiply(by_logit.mT, x.expand(kinds, -1, -1), sums, earlier, self.scale / max(1, self.divisor))
        if sums is not cotangents:
            cotangents.copy_(sums)


class _Sum:
    """A result to which each chunk gives a part: with one chunk, the result itself."""

    def __init__(self, result: Tensor, count: int) -> None:
        wide = torch.promote_types(result.dtype, torch.float32) if result.is_floating_point() else result.dtype
        self.result = result
        self.parts = result.unsqueeze(0) if count == 1 else result.new_empty(count, *result.shape, dtype=wide)

    def add_up(self, divisor: int = 1) -> None:
        if len(self.parts) > 1:
            self.result.copy_(self.parts.sum(0))
        if divisor != 1:
            self.result.div_(divisor)
