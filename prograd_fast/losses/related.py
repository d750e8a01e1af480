"""Losses of neighbouring methods as modules, each on one operator: landmarks, sampled prompts, sentences, features."""

from collections.abc import Callable

from torch import Tensor, nn

from prograd_fast import functional
from prograd_fast.ops.checks import check_fixed, check_floating, check_matrix
from prograd_fast.ops.differences import check_soft_wing


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

    __call__: Callable[..., Tensor]

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
            0-d: sum over a row's coordinates, mean over the rows; float32 or wider; differentiable.

        Raises:
            TypeError, ValueError: as `prograd_fast.functional.soft_wing`.
        """
        return functional.soft_wing(prediction, target, self.omega1, self.omega2, self.epsilon)

    def extra_repr(self) -> str:
        """The settings, for repr()."""
        return f"omega1={self.omega1}, omega2={self.omega2}, epsilon={self.epsilon}"


class SampledCrossEntropy(nn.Module):
    """Cross-entropy of the mean prediction of several sampled prompts: -log mean_s softmax(z_s)[y].

    Derakhshani et al., Bayesian Prompt Learning (arXiv:2210.02390), their data term. The prediction that goes with it
    is `prograd_fast.functional.sampled_log_probs`; formula: `prograd_fast.reference.sampled_cross_entropy`.

    Example:
        >>> import torch, prograd_fast as pf
        >>> logits = torch.randn(20, 4, 10, requires_grad=True)  # 20 samples
        >>> loss = pf.losses.SampledCrossEntropy()(logits, torch.tensor([0, 3, 9, 3]))
        >>> loss.backward()
        >>> logits.grad.shape
        torch.Size([20, 4, 10])
    """

    __call__: Callable[..., Tensor]

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss.

        Args:
            logits: (S, B, C), one matrix for each sample.
            labels: (B,) integers in 0 ... C - 1.

        Returns:
            0-d, mean over the batch; float32 or wider; differentiable.

        Raises:
            TypeError, ValueError: as `prograd_fast.functional.sampled_cross_entropy`.
        """
        return functional.sampled_cross_entropy(logits, labels)


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

    __call__: Callable[..., Tensor]

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
            0-d, mean over the L·K sentences; float32 or wider; differentiable.

        Raises:
            TypeError, ValueError: as `prograd_fast.functional.text_to_text_loss`.
        """
        return functional.text_to_text_loss(class_features, template_features, self.scale)

    def extra_repr(self) -> str:
        """The settings, for repr()."""
        return f"scale={self.scale}"


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

    __call__: Callable[..., Tensor]

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
            0-d, float32 or wider; differentiable.

        Raises:
            TypeError: something is not floating point.
            ValueError: shapes or devices do not fit, or something of the teacher's requires grad.
        """
        _check_srd(student_features, teacher_features, cross_logits, teacher_logits)
        feature_loss = functional.squared_error(student_features.mean((2, 3)), teacher_features.mean((2, 3)))
        return self.feature_factor * feature_loss + functional.squared_error(cross_logits, teacher_logits)

    def extra_repr(self) -> str:
        """The settings, for repr()."""
        return f"feature_factor={self.feature_factor}"


def _check_srd(
    student_features: Tensor, teacher_features: Tensor, cross_logits: Tensor, teacher_logits: Tensor
) -> None:
    """Raise TypeError or ValueError for arguments that `losses.SRD` has no result for."""
    for name, features in (("student_features", student_features), ("teacher_features", teacher_features)):
        check_floating(name, features)
        if features.dim() != 4:
            raise ValueError(f"{name}: expected shape (batch, channels, height, width), got {tuple(features.shape)}.")
    if student_features.shape[:2] != teacher_features.shape[:2]:
        raise ValueError(
            f"student_features: expected the teacher's batch and channels {tuple(teacher_features.shape[:2])}, got "
            f"{tuple(student_features.shape[:2])}. They come from the connector."
        )
    check_matrix("cross_logits", cross_logits, "(batch, classes)")
    check_matrix("teacher_logits", teacher_logits, "(batch, classes)")
    check_fixed("teacher_features", teacher_features)
    check_fixed("teacher_logits", teacher_logits)
