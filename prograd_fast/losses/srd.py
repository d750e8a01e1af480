"""The distillation loss of SRD: feature means, and what the teacher's classifier says of the student's features."""

from torch import Tensor, nn

from prograd_fast import functional
from prograd_fast.checks import check_srd


class SRD(nn.Module):
    """Squared errors of feature means and of cross-network logits: Yang et al., arXiv:2205.06701.

        φ · mean over batch and channels of (mean_hw f_s - mean_hw f_t)²  +  mean of (z_x - z_t)²

    f_s are the student's features after the connector (1×1 convolution, batch norm, ReLU), z_x = what the teacher's
    classifier makes of them, z_t its logits of its own features f_t. The means over height and width are PyTorch's,
    which already move each feature once; their squared error and that of the logits are one pass each. Source:
    `jingyang2017/SRD_ossl`, helper/loops.py.

    Args:
        feature_factor: φ ≥ 0 (default: 1.0; the authors take 10 for ShuffleNet V1).

    Raises:
        ValueError: `feature_factor` is below 0.

    Example:
        >>> import torch, prograd_fast as pf
        >>> connected = torch.randn(4, 5, 8, 8, requires_grad=True)
        >>> cross_logits = connected.mean((2, 3)) @ torch.randn(5, 7)
        >>> pf.losses.SRD()(connected, torch.randn(4, 5, 8, 8), cross_logits, torch.randn(4, 7)).backward()
    """

    def __init__(self, feature_factor: float = 1.0) -> None:
        super().__init__()
        if not 0 <= feature_factor < float("inf"):
            raise ValueError(f"feature_factor: expected a number of at least 0, got {feature_factor!r}. Use 1.0.")
        self.feature_factor = feature_factor

    def forward(
        self, student_features: Tensor, teacher_features: Tensor, cross_logits: Tensor, teacher_logits: Tensor
    ) -> Tensor:
        """The loss.

        Args:
            student_features: (B, D, H, W) after the connector.
            teacher_features: (B, D, H', W'), of the same number of channels; fixed.
            cross_logits: (B, C), the teacher's classifier on the student's features.
            teacher_logits: (B, C); fixed.

        Returns:
            0-d, float32 or wider; differentiable once.

        Raises:
            TypeError: something is not floating point.
            ValueError: shapes or devices do not fit, or something of the teacher's requires grad.
        """
        check_srd(student_features, teacher_features, cross_logits, teacher_logits)
        feature_loss = functional.squared_error(student_features.mean((2, 3)), teacher_features.mean((2, 3)))
        return self.feature_factor * feature_loss + functional.squared_error(cross_logits, teacher_logits)

    def extra_repr(self) -> str:
        """The settings, for repr()."""
        return f"feature_factor={self.feature_factor}"
