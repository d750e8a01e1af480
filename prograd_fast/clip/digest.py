"""The digest that tells one model's weights from another's."""

import hashlib

import torch
from torch import nn


@torch.no_grad()
def model_digest(model: nn.Module) -> str:
    """SHA-256 over names, shapes and values, in float16, of all parameters and floating buffers; 64 hex signs."""
    digest = hashlib.sha256()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point():
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().half().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
