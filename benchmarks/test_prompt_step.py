"""The prompt step, ours and the authors', on the text tower of CLIP RN50 and ViT-B/16.

Bytes: the weights of the tower, once forward and once backward, which a step cannot do without; it is the matrix
products that bound it (`benchmarks.prompt_step`).
"""

import pytest
import torch

from benchmarks import prompts

WEIGHT_BYTES = 4 * 2 * 12 * 12 * 512**2
SIDES = {
    "ours": lambda: prompts.our_step(100),
    "ours, task loss alone": lambda: prompts.our_step(100, both=False),
    "ours, bfloat16": lambda: prompts.our_step(100, dtype=torch.bfloat16),
    "authors' formulation": lambda: prompts.authors_step(100),
}


@pytest.mark.parametrize("side", SIDES)
def test_prompt_step(timed, side):
    timed("prompt step, 100 classes", SIDES[side](), WEIGHT_BYTES)
