"""Both losses and both cotangents, on logits and on features.

Bytes: 16 per logit (read both logits, write both cotangents); for features 4 (B·D + 4·C·D): read the features of images
and of both classes, write both cotangents, which is little beside the arithmetic.
"""

import pytest

from benchmarks.compare import DUAL_LOSS_BYTES
from benchmarks.losses import DUAL_LOSSES, LINEAR_DUAL_LOSSES


@pytest.mark.parametrize(("rows", "classes"), [(32, 100), (32, 1000), (1024, 21841)])
@pytest.mark.parametrize("side", DUAL_LOSSES)
def test_dual_loss(timed, rows, classes, side):
    timed(f"dual loss, {rows}x{classes}", DUAL_LOSSES[side](rows, classes), DUAL_LOSS_BYTES * rows * classes)


@pytest.mark.parametrize(("rows", "classes", "width"), [(32, 1000, 512), (1024, 21841, 512)])
@pytest.mark.parametrize("side", LINEAR_DUAL_LOSSES)
def test_linear_dual_loss(timed, rows, classes, width, side):
    call = LINEAR_DUAL_LOSSES[side](rows, classes, width)
    timed(f"linear dual loss, {rows}x{classes}x{width}", call, 4 * (rows + 4 * classes) * width)
