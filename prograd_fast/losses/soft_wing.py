"""The Soft Wing loss of landmark coordinates."""

from torch import Tensor, nn

from prograd_fast import functional
from prograd_fast.checks import check_soft_wing


class SoftWing(nn.Module):
    """Linear for small errors, logarithmic for large ones: Lin et al., arXiv:2006.11697.

    With d = |x - t| for each coordinate: d where d < ω1, else ω2 ln(1 + d/ε) + ω1 - ω2 ln(1 + ω1/ε). Formula:
    `prograd_fast.reference.soft_wing`.

    Args:
        omega1: ω1 > 0, up to which the loss is linear (default: 2.0, as the authors').
        omega2: ω2 > 0, scale of the logarithm (default: 20.0).
        epsilon: ε > 0, curvature of the logarithm (default: 0.5).

    Raises:
        ValueError: one of them is not above 0.

    Example:
        >>> import torch, prograd_fast as pf
        >>> float(pf.losses.SoftWing()(torch.tensor([[1.5, -0.5]]), torch.zeros(1, 2)))
        2.0
    """

    def __init__(self, omega1: float = 2.0, omega2: float = 20.0, epsilon: float = 0.5) -> None:
        super().__init__()
        check_soft_wing(omega1, omega2, epsilon)
        self.omega1, self.omega2, self.epsilon = omega1, omega2, epsilon

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The loss.

        Args:
            prediction: (B, ...) coordinates, such as (B, points, 2).
            target: the same shape; fixed.

        Returns:
            0-d: sum over a row's coordinates, mean over the rows; float32 or wider; differentiable once.

        Raises:
            TypeError, ValueError: as `prograd_fast.functional.soft_wing`.
        """
        return functional.soft_wing(prediction, target, self.omega1, self.omega2, self.epsilon)

    def extra_repr(self) -> str:
        """The settings, for repr()."""
        return f"omega1={self.omega1}, omega2={self.omega2}, epsilon={self.epsilon}"
