"""LASP's text-to-text loss: learned prompts stay near what people would write."""

from torch import Tensor, nn

from prograd_fast import functional


class TextToText(nn.Module):
    """Which learned prompt belongs to a hand-written sentence? Cross-entropy over the classes, as in LASP.

        loss = -1/(L K) Σ_l Σ_j log ( exp s⟨u_j, h_lj⟩ / Σ_i exp s⟨u_i, h_lj⟩ )

    The L·K·K logits are never stored. Source: Bulat and Tzimiropoulos, arXiv:2210.01115; formula:
    `prograd_fast.reference.text_to_text_loss`.

    Args:
        scale: s > 0, exp of CLIP's `logit_scale` (default: 100.0, CLIP's).

    Raises:
        ValueError: `scale` is not above 0.

    Example:
        >>> import torch, prograd_fast as pf
        >>> features = torch.nn.functional.normalize(torch.randn(10, 32), dim=1).requires_grad_()
        >>> templates = torch.nn.functional.normalize(torch.randn(35, 10, 32), dim=2)
        >>> pf.losses.TextToText()(features, templates).backward()
    """

    def __init__(self, scale: float = 100.0) -> None:
        super().__init__()
        if not 0 < scale < float("inf"):
            raise ValueError(f"scale: expected a number above 0, got {scale!r}. Use exp of the model's logit_scale.")
        self.scale = scale

    def forward(self, class_features: Tensor, template_features: Tensor) -> Tensor:
        """The loss.

        Args:
            class_features: u, (K, D) of the learned prompts, unit rows, in the order of the names.
            template_features: h, (L, K, D) of L templates filled with each name, unit rows; fixed.

        Returns:
            0-d, mean over the L·K sentences; float32 or wider; differentiable once.

        Raises:
            TypeError, ValueError: as `prograd_fast.functional.text_to_text_loss`.
        """
        return functional.text_to_text_loss(class_features, template_features, self.scale)

    def extra_repr(self) -> str:
        """The settings, for repr()."""
        return f"scale={self.scale}"
