"""Shared by the tests of methods: a task in float64."""

import torch
from torch.nn import functional as F

from prograd_fast.methods import Task
from tests.tiny_clip import CLASS_NAMES, TOKENIZER, tiny_clip


def make_task(n_classes=5, per_class=4, dtype=torch.float64, method=None):
    """Noisy copies of one random direction per class, as wide as the features that the method takes."""
    generator = torch.Generator().manual_seed(0)
    width = 32 if method is not None and method.before_projection else 24
    centres = torch.randn(n_classes, width, generator=generator, dtype=dtype).repeat_interleave(per_class, 0)
    features = F.normalize(centres + 0.3 * torch.randn(centres.shape, generator=generator, dtype=dtype), dim=-1)
    labels = torch.arange(n_classes).repeat_interleave(per_class)
    return Task(tiny_clip(dtype=dtype), TOKENIZER, CLASS_NAMES[:n_classes], features, labels)
