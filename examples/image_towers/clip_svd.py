"""CLIP-SVD with ProGrad's projection: the singular values of the weights of both towers are trained, and nothing else.

`python -m examples.image_towers.clip_svd`. Code HealthX-Lab/CLIP-SVD. Each weight is U · diag(s) · Vᵀ, and s alone
moves: here of query, key, value and output of the attention, and of both layers of the MLP, in every block. The
learning rate is ours.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from examples.image_towers.common import Tuned, main
from prograd_fast.clip import LoadedClip


class SingularValues(nn.Module):
    """U · diag(s) · Vᵀ of a weight that is `parts` matrices, one below the other; s is (parts, n)."""

    def __init__(self, weight: Tensor, parts: int) -> None:
        super().__init__()
        left, self.start, right = torch.linalg.svd(weight.detach().unflatten(0, (parts, -1)), full_matrices=False)
        self.register_buffer("left", left)
        self.register_buffer("right", right)

    def forward(self, values: Tensor) -> Tensor:
        """The weight."""
        return ((self.left * values[:, None]) @ self.right).flatten(0, 1)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The singular values at the start."""
        return self.start


class CLIPSVD(Tuned):
    """Both towers by singular values."""

    def __init__(self, clip: LoadedClip) -> None:
        super().__init__(clip, lr=1e-2)
        for tower in (self.model.visual, self.model):
            for block in tower.transformer.resblocks:
                weights = [(block.attn, "in_proj_weight", 3), (block.attn.out_proj, "weight", 1)]
                weights += [(layer, "weight", 1) for layer in block.mlp if isinstance(layer, nn.Linear)]
                for module, name, parts in weights:
                    values = SingularValues(getattr(module, name), parts)
                    register_parametrization(module, name, values, unsafe=True)
                    module.parametrizations[name].original.requires_grad_(True)


if __name__ == "__main__":
    main("CLIP-SVD", CLIPSVD)
