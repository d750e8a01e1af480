"""Shared by the tests of methods: a task in float64, and one with another teacher."""

from dataclasses import replace

import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from torch.nn import functional as F

from prograd_fast.methods import Task, Teacher, fingerprint
from tests.tiny_clip import CLASS_NAMES, TOKENIZER, tiny_clip


def make_task(n_classes=5, per_class=4, dtype=torch.float64, method=None):
    """Noisy copies of one random direction per class, as wide as the features that the method takes."""
    generator = torch.Generator().manual_seed(0)
    width = 32 if method is not None and method.before_projection else 24
    centres = torch.randn(n_classes, width, generator=generator, dtype=dtype).repeat_interleave(per_class, 0)
    features = F.normalize(centres + 0.3 * torch.randn(centres.shape, generator=generator, dtype=dtype), dim=-1)
    labels = torch.arange(n_classes).repeat_interleave(per_class)
    return Task(tiny_clip(dtype=dtype), TOKENIZER, CLASS_NAMES[:n_classes], features, labels)


def larger_clip(dtype=torch.float64):
    """Features 40 wide instead of 24, other weights, another logit scale."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = CustomTextCLIP(
            embed_dim=40,
            vision_cfg=CLIPVisionCfg(layers=1, width=32, head_width=16, patch_size=8, image_size=16),
            text_cfg=CLIPTextCfg(width=48, heads=2, layers=1),
        )
        for p in model.parameters():
            p.data.add_(0.05 * torch.randn_like(p))
    model.logit_scale.data.fill_(2.0)
    return model.to(dtype).eval()


def with_teacher(task, model=None, features=None):
    """The task with another teacher, by default a larger one with random features of the pictures."""
    dtype = task.image_features.dtype
    if features is None:
        g = torch.Generator().manual_seed(3)
        features = F.normalize(torch.randn(len(task.labels), 40, generator=g, dtype=dtype), dim=-1)
    pictures = fingerprint(map(str, range(len(task.labels))))
    teacher = Teacher(model or larger_clip(dtype), TOKENIZER, features, pictures)
    return replace(task, teacher=teacher, pictures=pictures)
