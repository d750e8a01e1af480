"""The kernels of `triton_kernels`: for NVIDIA GPUs, compiled by Triton when they are first used."""

from collections.abc import Callable
from importlib.util import find_spec

import torch


def missing() -> str | None:
    """Say why the kernels cannot run here; None where they can."""
    if find_spec("triton") is None:
        return "Triton is not installed. On Linux, run: pip install triton"
    if not torch.cuda.is_available():
        return "PyTorch sees no GPU. Install its CUDA build and the NVIDIA driver, or use another backend."
    return None


def device() -> str:
    """The type of device they run on."""
    return "cuda"


def register(dispatch_key: str = "CUDA") -> Callable[[], None]:
    """Register them with the dispatcher; the result takes them out again.

    Args:
        dispatch_key: whose tensors they take. "CPU" is for Triton's interpreter (TRITON_INTERPRET=1), in tests.
    """
    from prograd_fast.backends.triton_kernels.adamw import project_adamw_
    from prograd_fast.backends.triton_kernels.attention import shared_prefix_attention_out
    from prograd_fast.backends.triton_kernels.attention_backward import shared_prefix_attention_backward_out
    from prograd_fast.backends.triton_kernels.differences import difference_loss_out
    from prograd_fast.backends.triton_kernels.dual_loss import dual_loss_out
    from prograd_fast.backends.triton_kernels.gelu import gelu_backward_, gelu_out
    from prograd_fast.backends.triton_kernels.layer_norm import add_layer_norm_out, layer_norm_backward_
    from prograd_fast.backends.triton_kernels.linear_dual_loss import linear_cross_entropy_out, linear_dual_loss_out
    from prograd_fast.backends.triton_kernels.projection import gram_out, project_
    from prograd_fast.backends.triton_kernels.samples import sampled_cross_entropy_out, sampled_log_probs_out
    from prograd_fast.backends.triton_kernels.sgd import project_sgd_
    from prograd_fast.ops.registry import checked

    library = torch.library.Library("prograd_fast", "IMPL")
    for kernel in (
        dual_loss_out, linear_dual_loss_out, gram_out, project_, project_adamw_, project_sgd_,
        shared_prefix_attention_out, shared_prefix_attention_backward_out, add_layer_norm_out, layer_norm_backward_,
        gelu_out, gelu_backward_, linear_cross_entropy_out, sampled_cross_entropy_out, sampled_log_probs_out,
        difference_loss_out,
    ):  # fmt: skip
        library.impl(kernel.__name__, checked(kernel.__name__, kernel), dispatch_key)
    return library._destroy
