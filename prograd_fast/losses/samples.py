"""The loss of variational (Bayesian) prompt learning, without its prior's KL divergence."""

from torch import Tensor, nn

from prograd_fast import functional


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

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss.

        Args:
            logits: (S, B, C), one matrix for each sample.
            labels: (B,) integers in 0 ... C - 1.

        Returns:
            0-d, mean over the batch; float32 or wider; differentiable once.

        Raises:
            TypeError, ValueError: as `prograd_fast.functional.sampled_cross_entropy`.
        """
        return functional.sampled_cross_entropy(logits, labels)
