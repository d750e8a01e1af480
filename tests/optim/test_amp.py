"""Guards GradScaler, half precision and several ranks: gradients are scaled, skipped and averaged as in torch.optim."""

import math

import pytest
import torch

import prograd_fast as pf

SETTINGS = {"lr": 0.03, "betas": (0.8, 0.97), "weight_decay": 0.2}


def loss_pair(p, bad="nothing"):
    """Two losses in conflict; the one named `bad` overflows."""
    task = (p * torch.tensor([1.0, -1.0, 0.5])).sum() * (math.inf if bad == "task" else 1.0)
    general = (p * torch.tensor([0.0, 1.0, 0.0])).sum() * (math.inf if bad == "general" else 1.0)
    return task, general


def make(kind, p):
    if kind == "wrapper":
        return pf.ProGrad(torch.optim.Adam([p], lr=0.03))
    return pf.ProGradAdamW([p], **SETTINGS, fused=kind == "fused")


KINDS = ["plain", "fused", "wrapper"]
# who multiplies the losses: the optimizer (scaler=), or the user by hand; with or without unscale_ before the step
WAYS = ["by the optimizer", "by hand", "unscaled first"]


def scaled_step(opt, scaler, p, way, bad="nothing"):
    opt.zero_grad()
    task, general = loss_pair(p, bad)
    if way == "by hand":
        opt.backward(scaler.scale(task), scaler.scale(general))
    else:
        opt.backward(task, general, scaler=scaler)
    if way == "unscaled first":
        scaler.unscale_(opt)
        opt.project()
        torch.nn.utils.clip_grad_norm_([p], 100.0)
    scaler.step(opt)
    scaler.update()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_scaled_steps_are_unscaled_steps(kind, way):
    """Scale and unscale by a power of two: the same numbers bit for bit, and a conflict that was projected."""
    p, q = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    opt, other = make(kind, p), make(kind, q)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for _ in range(3):
        scaled_step(opt, scaler, p, way)
        other.zero_grad()
        other.backward(*loss_pair(q))
        other.step()
    assert torch.equal(p, q)
    assert opt.conflict.conflicts.tolist() == [3]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bad", ["task", "general"])
def test_infinite_gradients_skip_the_step(kind, way, bad):
    p = torch.nn.Parameter(torch.ones(3))
    opt = make(kind, p)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaled_step(opt, scaler, p, way)
    before = p.detach().clone()
    scaled_step(opt, scaler, p, way, bad)
    assert torch.equal(p, before)
    # a general gradient that the scaler cannot see lowers its scale only where the optimizer can show it
    lowered = bad == "task" or way != "by hand"
    assert scaler.get_scale() == (512.0 if lowered else 1024.0)
    scaled_step(opt, scaler, p, way)
    assert not torch.equal(p, before)
    assert p.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gradients_are_compared_in_float32(dtype):
    """Norms of 16-bit gradients: their squares overflow (float16) or lose all digits in the storage's own dtype."""
    p = torch.nn.Parameter(torch.zeros(1000, dtype=dtype))
    opt = pf.ProGradSGD([p], lr=1.0)
    a = torch.full((1000,), 300.0, dtype=dtype)
    b = torch.full((1000,), -200.0, dtype=dtype)
    opt.backward((p * a).sum(), (p * b).sum())
    opt.project()
    assert opt.conflict.conflicts.tolist() == [1]
    assert opt.conflict.cosine.tolist() == pytest.approx([-1.0])
    assert float(p.grad.abs().max()) <= 300 * torch.finfo(dtype).eps


def _rank(rank, port, queue):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    p, unused = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))
    opt = pf.ProGradSGD([p, unused], lr=0.1)
    # each rank alone sees no conflict; their mean does
    task = torch.tensor([[4.0, 0.0, 1.0], [0.0, -4.0, 1.0]][rank])
    general = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]][rank])
    opt.backward((p * task).sum(), (p * general).sum())
    opt.all_reduce()
    opt.step()
    warned = False
    opt.zero_grad()
    opt.backward((p * task).sum(), (p * general).sum())
    try:
        opt.step()
    except UserWarning as warning:
        warned = "all_reduce" in str(warning)
    # a plain step has no general gradient to average: a warning, which is an error here, would end this rank
    plain = pf.ProGradSGD([unused], lr=0.1, rule=pf.rules.PCGrad())
    unused.sum().backward()
    plain.step()
    queue.put((rank, p.tolist(), opt.conflict.conflicts.tolist(), warned))
    torch.distributed.destroy_process_group()


def test_ranks_average_both_gradients_before_the_projection():
    """Mean task (2, -2, 1), mean general (0, 1, 0): projected to (2, 0, 1). Without all_reduce there is a warning."""
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    torch.multiprocessing.spawn(_rank_with_warnings, args=(port, queue), nprocs=2)
    for _ in range(2):
        _, p, conflicts, warned = queue.get()
        assert p == pytest.approx([0.8, 1.0, 0.9])
        assert conflicts == [1, 0]
        assert warned


def _rank_with_warnings(rank, port, queue):
    import warnings

    warnings.simplefilter("error", UserWarning)
    _rank(rank, port, queue)


def test_all_reduce_without_ranks():
    opt = pf.ProGradSGD([torch.nn.Parameter(torch.ones(3))], lr=0.1)
    with pytest.raises(RuntimeError, match=r"Call init_process_group\(\) first"):
        opt.all_reduce()
