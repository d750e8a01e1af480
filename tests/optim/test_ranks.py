"""Guards several ranks: both gradients are averaged before the projection, once, or nothing is stepped on.

Two processes run all cases, each after the other, and hand back what each found.
"""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel

import prograd_fast as pf
from prograd_fast.optim.ranks import relative_weight
from tests.on_ranks import found_on_ranks
from tests.optim.kinds import OPTIMIZERS, RULES, WAYS, everything, losses, tensors
from tests.optim.support import same
from tests.tolerances import assert_close

RANKS = 2
# what each rank alone sees does not conflict; their mean does: (2, -2, 1) and (0, 1, 0), projected to (2, 0, 1)
TASK = torch.tensor([[4.0, 0.0, 1.0], [0.0, -4.0, 1.0]])
GENERAL = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]])


def sgd(*params: Tensor, **settings: Any) -> Any:
    return pf.ProGradSGD(params, **({"lr": 0.1, "process_group": dist.group.WORLD} | settings))


def pair(p: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    return (p * TASK[rank]).sum(), (p * GENERAL[rank]).sum()


def error_of(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


# ---- the cases; each runs on both ranks


def mean(rank: int) -> Any:
    results = []
    for way in WAYS.values():
        for wrapped in (False, True):
            p, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
            inner = torch.optim.SGD([p, unused], lr=0.1)
            opt = pf.ProGrad(inner, process_group=dist.group.WORLD) if wrapped else sgd(p, unused)
            way(opt, *pair(p, rank))
            results.append((p.tolist(), unused.tolist(), opt.conflict.conflicts.tolist()))
    return results


def a_parameter_that_one_rank_reaches(rank: int) -> Any:
    """It counts as zero on the other."""
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    opt = sgd(p, q)
    task, general = pair(p, rank)
    opt.backward(task + q.sum() if rank else task, general)
    opt.step()
    return p.tolist(), q.tolist(), opt.conflict.conflicts.tolist()


def accumulated(rank: int) -> Any:
    """Nothing is communicated within the block, and at the end as much as for one backward."""
    p = nn.Parameter(torch.ones(3))
    opt = sgd(p)
    opt.backward(*pair(p, rank))  # the first one looks whether the ranks agree
    counts = []
    for within in (0, 2):
        opt.zero_grad()
        with CommDebugMode() as block, opt.accumulate():
            for _ in range(within):
                opt.backward(*pair(p, rank))
        with CommDebugMode() as closing:
            opt.backward(*pair(p, rank))
        counts.append((block.get_total_counts(), closing.get_total_counts()))
        opt.step()
    return p.tolist(), counts


class Batch(nn.Module):
    """A model with two losses, each the mean over the batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


def batch_losses(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    output = model(x)
    return (output - 1).square().mean(), (output + 2).square().mean()


X = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
PARTS = (X[:3], X[3:])  # uneven


def uneven(rank: int) -> Any:
    """Each mean counts by its number of rows."""
    results = []
    for rule in ("none", "PCGrad", "Bloop"):
        for way in ("backward", "backward_and_update"):
            model = Batch()
            opt = pf.ProGradSGD(
                model.parameters(), lr=0.5, momentum=0.5, rule=RULES[rule](), process_group=dist.group.WORLD
            )
            for _ in range(3):
                opt.zero_grad()
                getattr(opt, way)(*batch_losses(model, PARTS[rank]), weight=len(PARTS[rank]))
                if way == "backward":
                    opt.step()
            results.append(whole(model))
    return results


def whole(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def wrapped_by_ddp(rank: int) -> Any:
    """DDP's own reduction is not waited for, and the mean is right; or it is refused."""
    model = Batch()
    ddp = DistributedDataParallel(model)
    opt = pf.ProGradSGD(model.parameters(), lr=0.5, process_group=dist.group.WORLD)
    for _ in range(3):
        opt.zero_grad()
        opt.backward(*batch_losses(ddp, PARTS[rank][:3]), weight=1)
        opt.step()
    return whole(model)


def ddp_and_no_sync(rank: int) -> Any:
    """The idiom of DDP's users, with a block of ours inside."""
    model = Batch()
    ddp = DistributedDataParallel(model)
    opt = pf.ProGradSGD(model.parameters(), lr=0.5, process_group=dist.group.WORLD)
    with ddp.no_sync(), opt.accumulate():
        opt.backward(*batch_losses(ddp, PARTS[rank][:3]))
    opt.backward(*batch_losses(ddp, PARTS[rank][:3]))
    opt.step()
    return whole(model)


def without_a_group(rank: int) -> Any:
    """A step on a rank's own gradients is never what is meant."""
    p = nn.Parameter(torch.ones(3))
    found = []
    for make in (lambda p: pf.ProGradSGD(p, lr=0.1), pf.ProGradAdamW, lambda p: pf.ProGrad(torch.optim.Adam(p))):
        opt = make([p])
        found.append(error_of(lambda opt=opt: opt.backward(*pair(p, rank))))
        found.append(error_of(lambda opt=opt: opt.backward_and_update(*pair(p, rank))))
        found.append(error_of(lambda opt=opt: opt.step(lambda: pair(p, rank))))
    return found, p.grad is None, p.tolist()


def bad_on_one_rank(rank: int) -> Any:
    """All ranks do the same: without a scaler the task gradient, with one no step and a lower scale."""
    p = nn.Parameter(torch.ones(3))
    opt = sgd(p)
    task, general = pair(p, rank)
    opt.backward(task, general * (torch.inf if rank else 1.0))
    opt.step()
    plain = p.tolist()
    q = nn.Parameter(torch.ones(3))
    results = []
    for way in ("backward", "backward_and_update"):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        opt = sgd(q)
        task, general = pair(q, rank)
        getattr(opt, way)(task, general * (torch.inf if rank else 1.0), scaler=scaler)
        if way == "backward":
            scaler.step(opt)
        scaler.update()
        results.append((q.tolist(), scaler.get_scale()))
    return plain, results


def bad_weights(rank: int) -> Any:
    """Of what is not a number of at least 0, and within a block."""
    p = nn.Parameter(torch.ones(3))
    opt = sgd(p)
    found = [error_of(lambda w=w: opt.backward(*pair(p, rank), weight=w)) for w in (-1.0, float("nan"), "many")]
    with opt.accumulate():
        found.append(error_of(lambda: opt.backward(*pair(p, rank), weight=2.0)))
    return found, p.grad is None


def other_numbers(rank: int) -> Any:
    """Rounded by another seed, parameters that are the same on all ranks would part without a word."""
    found = []
    for options in ({"stochastic_rounding": rank}, {"state_dtype": (torch.float32, None)[rank]}):
        p = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
        opt = sgd(p, **options)
        found.append(error_of(lambda opt=opt, p=p: opt.backward(*pair(p, rank))))
    return found


def weights_in_16_bits(rank: int) -> Any:
    """Sizes of batches as `relative_weight` sends them, where the default dtype is bfloat16: 257 is none of its."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        return relative_weight(257.0 if rank else 1.0, dist.group.WORLD, torch.device("cpu")).item()
    finally:
        torch.set_default_dtype(torch.float32)


def copies(rank: int) -> Any:
    """A process group cannot be copied or pickled: a copy shares it, or has none and says so at its first backward."""
    results = []
    for copier in (copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))):
        p = nn.Parameter(torch.ones(3))
        q, twin = copier((p, sgd(p)))
        error = error_of(lambda twin=twin, q=q: twin.backward(*pair(q, rank)))
        if error == "nothing":
            twin.step()
        results.append((q.tolist(), error))
    return results


def types_and_devices(rank: int) -> Any:
    """One collective for each dtype; each rank comes to the same bits."""
    params = tensors(((3, 2), (4,))) + tensors(((5,), (2, 2)), torch.float32) + tensors(((3,),), torch.bfloat16)
    opt = OPTIMIZERS["adamw"](params, rule=pf.rules.GradVac(0.5), process_group=dist.group.WORLD)
    for step in range(3):
        opt.zero_grad()
        opt.backward(*losses(params, 2 * step + rank))
        opt.step()
    return {" ".join(map(str, key)): value for key, value in everything(opt).items()}


CASES: dict[str, Callable[[int], Any]] = {
    case.__name__: case
    for case in (
        mean,
        a_parameter_that_one_rank_reaches,
        accumulated,
        uneven,
        wrapped_by_ddp,
        ddp_and_no_sync,
        without_a_group,
        bad_on_one_rank,
        bad_weights,
        other_numbers,
        weights_in_16_bits,
        copies,
        types_and_devices,
    )
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What every case returned on each rank, or the error."""
    return found_on_ranks(__name__, RANKS, tmp_path_factory.mktemp("ranks"))


def both(results: dict[str, list[Any]], name: str) -> list[Any]:
    for found in results[name]:
        assert not (isinstance(found, str) and found.startswith("Traceback")), found
    return results[name]


def test_the_mean_is_projected(results: dict[str, list[Any]]) -> None:
    for found in both(results, "mean"):
        for p, unused, conflicts in found:
            assert p == pytest.approx([0.8, 1.0, 0.9])
            assert unused == [1, 1]
            assert conflicts == [1, 0]


def test_a_gradient_that_one_rank_lacks_counts_as_zero(results: dict[str, list[Any]]) -> None:
    for p, q, conflicts in both(results, "a_parameter_that_one_rank_reaches"):
        assert p == pytest.approx([0.8, 1.0, 0.9])
        assert q == pytest.approx([0.95, 0.95])
        assert conflicts == [1, 0]


def test_a_block_communicates_once(results: dict[str, list[Any]]) -> None:
    for p, ((_, once), (within, closing)) in both(results, "accumulated"):
        assert p == pytest.approx([0.2, 1.0, 0.6])  # one step, then one three times as large
        assert within == 0
        assert closing == once > 0


def test_uneven_batches_are_one_batch(results: dict[str, list[Any]]) -> None:
    """As one process on the whole batch."""
    first, second = both(results, "uneven")
    expected = []
    for rule in ("none", "PCGrad", "Bloop"):
        model = Batch()
        opt = pf.ProGradSGD(model.parameters(), lr=0.5, momentum=0.5, rule=RULES[rule]())
        for _ in range(3):
            opt.zero_grad()
            opt.backward(*batch_losses(model, X))
            opt.step()
        expected += [whole(model)] * 2
    for x, y, z in zip(first, second, expected, strict=True):
        assert torch.equal(x, y)
        assert_close(x, z, "formula", torch.float32)


def test_distributed_data_parallel(results: dict[str, list[Any]]) -> None:
    """A second real backward of one forward is not reduced by it: 3.0 where the mean is 4.5."""
    model = Batch()
    opt = pf.ProGradSGD(model.parameters(), lr=0.5)
    for _ in range(3):
        opt.zero_grad()
        opt.backward(*batch_losses(model, torch.cat([part[:3] for part in PARTS])))
        opt.step()
    first, second = both(results, "wrapped_by_ddp")
    assert torch.equal(first, second)
    assert_close(first, whole(model), "formula", torch.float32)


def test_no_sync(results: dict[str, list[Any]]) -> None:
    model = Batch()
    opt = pf.ProGradSGD(model.parameters(), lr=0.5)
    task, general = batch_losses(model, torch.cat([part[:3] for part in PARTS]))
    opt.backward(2 * task, 2 * general)
    opt.step()
    first, second = both(results, "ddp_and_no_sync")
    assert torch.equal(first, second)
    assert_close(first, whole(model), "formula", torch.float32)


def test_no_group_is_refused(results: dict[str, list[Any]]) -> None:
    for errors, no_gradient, p in both(results, "without_a_group"):
        assert all(error.startswith("RuntimeError") and "process_group" in error for error in errors), errors
        assert no_gradient
        assert p == [1, 1, 1]


def test_a_bad_gradient_on_one_rank(results: dict[str, list[Any]]) -> None:
    for plain, scaled in both(results, "bad_on_one_rank"):
        assert plain == pytest.approx([0.8, 1.2, 0.9])
        assert scaled == [([1, 1, 1], 512.0)] * 2


def test_weights_that_are_none(results: dict[str, list[Any]]) -> None:
    for errors, no_gradient in both(results, "bad_weights"):
        assert all("weight" in error and error.split(":")[0] in ("ValueError", "TypeError") for error in errors), errors
        assert no_gradient


def test_ranks_that_round_otherwise_are_refused(results: dict[str, list[Any]]) -> None:
    for seeds, dtypes in both(results, "other_numbers"):
        assert seeds.startswith("ValueError"), seeds
        assert "stochastic_rounding is 0 in process 0 and 1 in process 1" in seeds
        assert "state_dtype is torch.float32 in process 0 and None in process 1" in dtypes


def test_weights_do_not_take_the_default_dtype(results: dict[str, list[Any]]) -> None:
    assert both(results, "weights_in_16_bits") == pytest.approx([1 / 129, 257 / 129], rel=1e-6)


def test_copies_of_an_optimizer_with_a_group(results: dict[str, list[Any]]) -> None:
    for found in both(results, "copies"):
        for q, error in found:
            assert q == (pytest.approx([0.8, 1.0, 0.9]) if error == "nothing" else [1, 1, 1])
            assert error == "nothing" or (error.startswith("RuntimeError") and "process_group" in error)


def test_all_ranks_come_to_the_same_bits(results: dict[str, list[Any]]) -> None:
    first, second = both(results, "types_and_devices")
    assert first.keys() == second.keys()
    assert same(first.values(), second.values())


def test_weight_without_ranks() -> None:
    """In one process it is the only weight, and of no consequence."""
    p = nn.Parameter(torch.ones(3))
    opt = pf.ProGradSGD([p], lr=0.1)
    opt.backward(p.sum(), p.sum(), weight=3.0)
    assert p.grad is not None
    assert p.grad.tolist() == [1, 1, 1]
