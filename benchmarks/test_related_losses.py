"""Losses of neighbouring methods with their gradients.

Bytes: samples 8 per logit (read, write the cotangent); differences 12 per element (read both, write the cotangent);
text to text 4 (L·K·D + 2·K·D), which is little beside the arithmetic. What autograd moves is more.
"""

import pytest

from benchmarks.related_losses import SAMPLES, SOFT_WINGS, SQUARED_ERRORS, TEXT_TO_TEXT


@pytest.mark.parametrize(("samples", "rows", "classes"), [(20, 1, 100), (10, 1, 1000), (20, 256, 1000)])
@pytest.mark.parametrize("side", SAMPLES)
def test_samples(timed, samples, rows, classes, side):
    moved = 8 * samples * rows * classes
    timed(f"samples, {samples}x{rows}x{classes}", SAMPLES[side](samples, rows, classes), moved)


@pytest.mark.parametrize("size", [136 * 32, 136 * 2**17])
@pytest.mark.parametrize(
    ("name", "sides", "side"),
    [(n, s, side) for n, s in (("squared error", SQUARED_ERRORS), ("soft wing", SOFT_WINGS)) for side in s],
)
def test_differences(timed, size, name, sides, side):
    timed(f"{name}, {size}", sides[side](size), 12 * size)


@pytest.mark.parametrize(("templates", "classes", "width"), [(35, 100, 512), (35, 500, 512)])
@pytest.mark.parametrize("side", TEXT_TO_TEXT)
def test_text_to_text(timed, templates, classes, width, side):
    moved = 4 * (templates + 2) * classes * width
    timed(f"text to text, {templates}x{classes}x{width}", TEXT_TO_TEXT[side](templates, classes, width), moved)
