"""xERM: long-tailed classification between a biased and a balanced view of one frozen teacher."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prograd_fast import functional
from prograd_fast.ops.checks import check_fixed, check_floating, check_label_range, check_labels
from prograd_fast.ops.common import accumulation_dtype
from prograd_fast.ops.dual_loss import check_loss_options
from prograd_fast.ops.xerm import xerm_weights


class XERM(nn.Module):
    """Cross-domain empirical risk minimization: `DualLoss` with weights that the teacher gives each row.

    A teacher that was trained on imbalanced classes has factual logits f and counterfactual, balanced ones c. With
    ℓ = CE(·, y)^γ, w_c = ℓ_c / (ℓ_c + ℓ_f + ε) and w_f = 1 - w_c,

        task    = mean_i w_f · -log softmax(z)[y]
        general = mean_i w_c · -T² Σ_k softmax(c/T)_k log softmax(z/T)_k

    and xERM's loss is their sum. Weights: `prograd_fast.reference.xerm_weights`, which never are NaN.

    The authors' three variants (Zhu et al., arXiv:2112.14380; `BeierZhu/xERM`):

        PC      XERM(prior_offset(train, test), gamma=1.5)              c = f - log π_train + log π_test
        TDE     XERM(gamma=2, eps=0); give c: `causal_norm_logits`      γ = 2, τ = 16, α = 2 for Places-LT
        RIDE    XERM(prior_offset(train, test, 2), gamma=1, margins=ldam_margins(counts)); logits (experts, B, C)

    With several experts, the losses are summed over them and the weights come from the mean of their logits.

    Args:
        offset: (C,), what is added to the factual logits to give the counterfactual ones (default: None, which asks for
            the counterfactual logits themselves at every call).
        gamma: γ > 0 (default: 1.5, for CIFAR100-LT; 2 for ImageNet-LT and Places-LT).
        eps: ε ≥ 0 (default: 1e-5; TDE: 0).
        temperature: T > 0 of the soft cross-entropy (default: 1.0).
        margins: (C,), subtracted from the logit of the true class in the task loss alone (default: None, 0).

    Raises:
        ValueError: a setting is out of its range.

    Example:
        >>> import torch, prograd_fast as pf
        >>> train = torch.tensor([0.8, 0.15, 0.05])
        >>> criterion = pf.losses.XERM(pf.losses.prior_offset(train, torch.full((3,), 1 / 3)))
        >>> student, teacher = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
        >>> task, general = criterion(student, teacher, torch.tensor([0, 1, 2, 0]))
        >>> (task + general).backward()
    """

    __call__: Callable[..., tuple[Tensor, Tensor]]

    offset: Tensor | None
    margins: Tensor | None

    def __init__(
        self,
        offset: Tensor | None = None,
        gamma: float = 1.5,
        eps: float = 1e-5,
        temperature: float = 1.0,
        margins: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_loss_options(temperature, "soft_ce", "mean")
        if not (0 < gamma < float("inf") and 0 <= eps < float("inf")):
            raise ValueError(f"gamma, eps: expected γ above 0 and ε at least 0, got {gamma!r} and {eps!r}.")
        self.gamma, self.eps, self.temperature = gamma, eps, temperature
        self.register_buffer("offset", offset)
        self.register_buffer("margins", margins)

    def forward(
        self,
        student_logits: Tensor,
        factual_logits: Tensor,
        labels: Tensor,
        counterfactual_logits: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Both losses.

        Args:
            student_logits: z, (B, C), or (experts, B, C).
            factual_logits: f, the same shape; fixed.
            labels: (B,) integers in 0 ... C - 1.
            counterfactual_logits: c, the same shape; fixed. None: the factual ones plus `offset`.

        Returns:
            (task, general), 0-d, float32 or wider; each differentiable.

        Raises:
            TypeError: logits are not floating point, or labels are not integers.
            ValueError: shapes or devices do not fit, the teacher requires grad, there are both or neither of offset and
                counterfactual logits, or (on a CPU) a label is out of range.
        """
        _check(student_logits, factual_logits, labels, counterfactual_logits, self.offset)
        teacher = factual_logits if counterfactual_logits is None else counterfactual_logits
        counterfactual = _mean_of_experts(teacher)
        if self.offset is not None:
            counterfactual = counterfactual + self.offset
        w_factual, w_counterfactual = self._weights(_mean_of_experts(factual_logits), counterfactual, labels.long())
        experts = 1 if student_logits.dim() == 2 else student_logits.shape[0]
        student, labels = student_logits.flatten(0, -2), labels.repeat(experts)
        task, general = functional.dual_loss(
            student,
            teacher.flatten(0, -2),
            labels,
            self.temperature,
            "soft_ce",
            teacher_offset=self.offset,
            task_weight=w_factual.repeat(experts),
            general_weight=w_counterfactual.repeat(experts),
        )
        if self.margins is not None:
            task = self._with_margins(student, labels, w_factual.repeat(experts))
        return experts * task, experts * general

    @torch.no_grad()
    def _weights(self, factual: Tensor, counterfactual: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        try:
            return xerm_weights(factual, counterfactual, labels, self.gamma, self.eps)
        except (ValueError, IndexError, RuntimeError) as error:
            check_label_range(error, labels, factual, 1)
            raise

    def _with_margins(self, student: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
        """The task loss of logits that differ from those of the general loss: PyTorch's."""
        assert self.margins is not None
        margins = self.margins[labels].unsqueeze(1).to(weight.dtype)
        logits = student.to(weight.dtype) - margins * F.one_hot(labels, student.shape[1])
        return (weight * F.cross_entropy(logits, labels, reduction="none")).mean()

    def extra_repr(self) -> str:
        """The settings, for repr()."""
        return f"gamma={self.gamma}, eps={self.eps}, temperature={self.temperature}"


def prior_offset(train_prior: Tensor, test_prior: Tensor, train_power: float = 1.0) -> Tensor:
    """The offset that turns factual logits into counterfactual ones: log π_test - train_power · log π_train.

    Args:
        train_prior: π_train, (C,) shares of the classes in the training set, all above 0.
        test_prior: π_test, (C,), all above 0; uniform for a balanced test set.
        train_power: 1 (default) as in PC, 2 as in RIDE.

    Returns:
        (C,).

    Raises:
        ValueError: a prior is not above 0, or the shapes differ.
    """
    if train_prior.shape != test_prior.shape:
        raise ValueError(
            f"test_prior: expected shape {tuple(train_prior.shape)} as train_prior, got {tuple(test_prior.shape)}."
        )
    for name, prior in (("train_prior", train_prior), ("test_prior", test_prior)):
        if not bool((prior > 0).all()):
            raise ValueError(
                f"{name}: expected shares above 0, got {float(prior.min())} for class {int(prior.argmin())}. "
                "Leave the class out, or give it the share of a fraction of a picture."
            )
    return test_prior.log() - train_power * train_prior.log()


def ldam_margins(class_counts: Tensor, largest: float = 0.5, scale: float = 30.0) -> Tensor:
    """Margins of RIDE's task loss, larger for rarer classes: scale · largest · n_c^(-1/4) / max_k n_k^(-1/4).

    Args:
        class_counts: n, (C,) pictures of each class in the training set, all above 0.
        largest: of the rarest class, before the scale (default: 0.5).
        scale: of the logits (default: 30.0).

    Returns:
        (C,), float64 for float64 counts, else float32.

    Raises:
        ValueError: a class has no picture.
    """
    if not bool((class_counts > 0).all()):
        raise ValueError(f"class_counts: expected counts above 0, got none for class {int(class_counts.argmin())}.")
    rarity = class_counts.to(torch.promote_types(class_counts.dtype, torch.float32)).pow(-0.25)
    return scale * largest * rarity / rarity.max()


def causal_norm_logits(
    features: Tensor,
    weight: Tensor,
    mean_feature: Tensor | None = None,
    *,
    tau: float = 16.0,
    alpha: float = 2.0,
    norm_offset: float = 1 / 32,
    heads: int = 1,
) -> Tensor:
    """Logits of the de-confounded classifier of xERM's TDE variant: total effect, or total direct effect.

    For each of K heads, with x̃ = x/‖x‖, w̃ = w/(‖w‖ + γ'), ĉ = c/‖c‖:

        total effect         (τ/K) Σ_heads x̃ · w̃ᵀ
        total direct effect  (τ/K) Σ_heads (x̃ - α cos(x̃, ĉ) ĉ) · w̃ᵀ

    Source: `BeierZhu/xERM`, xERM.TDE.public/models/CausalNormClassifier.py.

    Args:
        features: x, (B, D).
        weight: w, (C, D).
        mean_feature: c, (D,), running mean of the training features; None (default) for the total effect.
        tau: τ (default: 16.0, Places-LT's, as are the others).
        alpha: α (default: 2.0).
        norm_offset: γ' (default: 1/32).
        heads: K, a divisor of D (default: 1).

    Returns:
        (B, C). Factual logits are the total effect, counterfactual ones the total direct effect, and the student's own
        the total effect of its features and weight.
    """
    x = F.normalize(features.unflatten(1, (heads, -1)), dim=2)
    w = weight.unflatten(1, (heads, -1))
    w = w / (w.norm(dim=2, keepdim=True) + norm_offset)
    if mean_feature is not None:
        c = F.normalize(mean_feature.unflatten(0, (heads, -1)), dim=1)
        x = x - alpha * (x * c).sum(dim=2, keepdim=True) * c
    return tau / heads * (x.flatten(1) @ w.flatten(1).T)


def _mean_of_experts(logits: Tensor) -> Tensor:
    return logits if logits.dim() == 2 else logits.to(accumulation_dtype(logits)).mean(dim=0)


def _check(
    student_logits: Tensor,
    factual_logits: Tensor,
    labels: Tensor,
    counterfactual_logits: Tensor | None,
    offset: Tensor | None,
) -> None:
    """Raise TypeError or ValueError for arguments that `losses.XERM` has no result for."""
    check_floating("student_logits", student_logits)
    if student_logits.dim() not in (2, 3):
        raise ValueError(
            "student_logits: expected shape (batch, classes) or (experts, batch, classes), got "
            f"{tuple(student_logits.shape)}."
        )
    if (counterfactual_logits is None) == (offset is None):
        raise ValueError(
            "counterfactual_logits: expected either these or an offset of XERM, got "
            f"{'neither' if offset is None else 'both'}. PC and RIDE have an offset, TDE has counterfactual logits."
        )
    for name, logits in (("factual_logits", factual_logits), ("counterfactual_logits", counterfactual_logits)):
        if logits is not None:
            check_floating(name, logits)
            check_fixed(name, logits)
            if logits.shape != student_logits.shape:
                raise ValueError(
                    f"{name}: expected the student's shape {tuple(student_logits.shape)}, got {tuple(logits.shape)}."
                )
    check_labels(labels, student_logits.shape[-2])
