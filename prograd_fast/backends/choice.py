"""Which backend runs an operator on GPUs: an ordered list for each family, with a reason; docs/kernels.md shows it.

A family is a file of `prograd_fast.ops`: its operators share formulas, and its backward reads what its forward wrote,
so one backend runs all of them. The first one in the list that can run here is taken. An install with nvcc has both;
one without it has Triton alone, and an old or missing Triton leaves "cuda" alone: each implementation is somebody's
only one.

Until somebody has measured on a GPU, the reasons are counts: of launches, bytes and instructions in the compiled code,
and of milliseconds on the host, which a CPU can tell.
"""

from dataclasses import dataclass

BY_COUNTS = "by counts, not measured"

# how an implementation was executed, other than on a GPU; a GPU is named with the date
SIMT = "SIMT emulation"  # tests/gpu/simt: csrc/cuda as C++ on a CPU, with the threads of a block and their barriers
INTERPRETER = "Triton's interpreter"  # tests/gpu/triton/interpreted
SAME_CODE = "CPU, the same code"  # nothing in it is compiled; float32 products in the place of 16-bit ones


@dataclass(frozen=True)
class Family:
    """The choice for one family.

    Attributes:
        operators: those with kernels.
        backends: in order; for each, how its implementation was executed, "" where it never was.
        why: the reason for the order.
        basis: what the reason rests on.
    """

    operators: tuple[str, ...]
    backends: dict[str, str]
    why: str
    basis: str = BY_COUNTS


_BOTH = {"cuda": SIMT, "triton": INTERPRETER}

FAMILIES: dict[str, Family] = {
    "dual_loss": Family(("dual_loss_out",), _BOTH, "no more bytes, and no Python before a launch"),
    "linear_dual_loss": Family(
        ("linear_dual_loss_out", "linear_cross_entropy_out"),
        {"cuda": SAME_CODE, "triton": SAME_CODE},
        "one code for both: products of cuBLAS chunk by chunk, around the loss of the backend that has it",
    ),
    "samples": Family(
        ("sampled_cross_entropy_out", "sampled_log_probs_out"), _BOTH, "no more bytes, and no Python before a launch"
    ),
    "differences": Family(
        ("difference_loss_out", "structure_loss_out"), _BOTH, "no more bytes, and no Python before a launch"
    ),
    "normalised_focal": Family(
        ("normalised_focal_loss_out",), _BOTH, "two launches instead of three, and no Python before them"
    ),
    "soft_argmax": Family(
        ("local_soft_argmax_out", "local_soft_argmax_backward_out"),
        _BOTH,
        "no more bytes, and no Python before a launch",
    ),
    "edges": Family(
        ("edge_softmax_sum_out", "edge_softmax_sum_backward_out"),
        _BOTH,
        "fewer launches, and no Python before them",
    ),
    "projection": Family(
        ("gram_out", "project_out"), _BOTH, "Triton's Python takes 39 µs for one tensor and 473 µs for 200"
    ),
    "updates": Family(
        ("project_adamw_", "project_sgd_"), _BOTH, "Triton's Python takes 39 µs for one tensor and 473 µs for 200"
    ),
    "attention": Family(
        ("shared_prefix_attention_out", "shared_prefix_attention_backward_out"),
        _BOTH,
        "tiles of 64 queries on tensor cores, the prefix read once a tile; Triton's Python takes 27 µs",
    ),
    "layer_norm": Family(
        ("add_layer_norm_out", "layer_norm_backward_"), _BOTH, "no more bytes; Triton's Python takes 18 µs"
    ),
    "gelu": Family(("gelu_out", "gelu_backward_"), _BOTH, "no more bytes, and no Python before a launch"),
    "linear_gelu": Family(
        ("linear_gelu_out", "linear_gelu_backward_out"),
        {"triton": INTERPRETER},
        "the GELU as the product's epilogue: a launch and a pass through memory less than cuBLAS and `gelu`, which are "
        "taken without Triton",
    ),
    "affine_shift": Family(
        ("affine_shift_out", "affine_shift_backward_out"), _BOTH, "a launch for eight groups of channels, not for one"
    ),
    "gate_shift_fuse": Family(
        ("gate_shift_means_out", "gate_shift_fuse_out", "gate_shift_slopes_out", "gate_shift_fuse_backward_out"),
        _BOTH,
        "what moves is carried in registers, so that the second pass reads nothing twice",
    ),
}


def unverified() -> list[tuple[str, str]]:
    """The families, each with a backend, whose implementation was executed nowhere."""
    return [(name, backend) for name, family in FAMILIES.items() for backend, how in family.backends.items() if not how]
