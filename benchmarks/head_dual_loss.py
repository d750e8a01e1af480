"""The dual loss over a vocabulary: `python -m benchmarks.head_dual_loss` prints time and peak memory of both sides.

The sides take turns in one process, memory is measured in a process for each; medians. Both end with the gradients of
both losses in the student's features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

import prograd_fast as pf
from benchmarks.measure import DEVICE, Side, interleaved, machine
from benchmarks.peak_memory import peak_memory

SIZES = (512, 128_000, 256)  # tokens, words, width
ROUNDS = 7


def features(rows: int, classes: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Student's and teacher's features, the head and labels."""
    g = torch.Generator().manual_seed(0)
    head, teacher, noise = (torch.randn(n, width, generator=g) for n in (classes, rows, rows))
    student = (teacher + noise.mul_(0.1)).to(DEVICE).requires_grad_()
    return student, teacher.to(DEVICE), head.mul_(0.05).to(DEVICE), torch.randint(classes, (rows,), generator=g)


def _gradients(student: Tensor, task: Tensor, general: Tensor) -> tuple[Tensor, ...]:
    (a,) = torch.autograd.grad(task, student, retain_graph=True)
    (b,) = torch.autograd.grad(general, student)
    return task.detach(), general.detach(), a, b


def head_dual_loss(rows: int, classes: int, width: int) -> Side:
    """`head_dual_loss` and two backwards."""
    student, *others = features(rows, classes, width)
    return lambda: _gradients(student, *pf.functional.head_dual_loss(student, *others))


def stored_logits(rows: int, classes: int, width: int) -> Side:
    """PyTorch's cross-entropy and KL divergence of stored logits, and two backwards."""
    student, teacher, head, labels = features(rows, classes, width)

    def both() -> tuple[Tensor, ...]:
        z = F.linear(student, head)
        task = F.cross_entropy(z, labels)
        log_q = F.linear(teacher, head).log_softmax(1)
        return _gradients(student, task, F.kl_div(z.log_softmax(1), log_q, reduction="batchmean", log_target=True))

    return both


SIDES = {"head_dual_loss": head_dual_loss, "cross_entropy + kl_div": stored_logits}


def main() -> None:
    """The command."""
    print("\n".join(f"{name}: {value}" for name, value in machine().items()))
    timings = interleaved({name: make(*SIZES) for name, make in SIDES.items()}, ROUNDS)
    for name, timing in timings.items():
        memory = peak_memory(f"benchmarks.head_dual_loss:SIDES:{name}", (8, 64, SIZES[2]), SIZES)
        print(f"{name}, B={SIZES[0]} C={SIZES[1]} D={SIZES[2]}: {timing.median:.2f} s, {memory / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
