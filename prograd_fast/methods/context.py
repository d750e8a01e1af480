"""The parts that a learned context is put together from: one for all pictures here, others beside it."""

from torch import Tensor, nn


class Context(nn.Module):
    """The context tokens, the same for every picture.

    Args:
        ctx: (M, d).
    """

    def __init__(self, ctx: nn.Parameter) -> None:
        super().__init__()
        self.ctx = ctx

    def forward(self, image_features: Tensor) -> Tensor:
        """Contexts for (B, D) image features: (M, d) for all alike, or (G, M, d) in the order that `logits` knows."""
        return self.ctx
