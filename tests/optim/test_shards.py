"""Guards parameters of which each rank has a part: the numbers are those of one process on the whole batch.

The ranks run all cases, each after the other, and hand back what each found: whole tensors.
"""

import copy
import datetime
import itertools
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import prograd_fast as pf
from prograd_fast.ops.common import SCOPES
from tests.on_ranks import folder_of_ranks, found_on_ranks
from tests.optim.kinds import OPTIMIZERS, WAYS
from tests.slow import slow_but_for
from tests.tolerances import assert_close

Found = dict[str, Tensor]

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
RULES: dict[str, Callable[[], pf.rules.Rule]] = {
    "ProGrad": lambda: pf.rules.ProGrad(0.7),
    "AGEM": pf.rules.AGEM,
    "GradVac": lambda: pf.rules.GradVac(0.3),
    "CAGrad": lambda: pf.rules.CAGrad(0.4),
    "Bloop": lambda: pf.rules.Bloop(0.8, 0.5),
    "Subspace": lambda: pf.rules.Subspace(torch.linalg.qr(torch.arange(66.0).cos().view(22, 3)).Q.mT.contiguous()),
}


class Model(nn.Module):
    """Rows of one layer are 4, of the other one: with 4 ranks or less some of them have nothing of it."""

    def __init__(self, dtype: torch.dtype = torch.float64, hidden: int = 4) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.second = nn.Linear(4, hidden, dtype=dtype), nn.Linear(hidden, 1, dtype=dtype)
        self.scale = nn.Parameter(torch.tensor([1.5, 0.5, -1.0], dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh()) * self.scale[0] + self.scale[1:].sum()


def losses(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    output = model(x.to(next(model.parameters()).dtype))
    return (output - 1).square().mean(), (output + 2).square().mean()


# ---- ways to shard a model; each gives the group to average over, and the rows that this rank sees


def world() -> int:
    return dist.get_world_size()


def mesh(*shape: int, names: tuple[str, ...] | None = None) -> Any:
    return init_device_mesh("cpu", shape, mesh_dim_names=names)


def mine(x: Tensor = X) -> Tensor:
    return x[dist.get_rank() :: world()]


def everything_sharded(model: Any) -> tuple[Any, Tensor]:
    fully_shard(model.first)
    fully_shard(model)
    return None, mine()


def mixed_with_whole(model: Any) -> tuple[Any, Tensor]:
    fully_shard(model.first)
    fully_shard(model.second)
    return dist.group.WORLD, mine()


def replicated_and_sharded(model: Any) -> tuple[Any, Tensor]:
    fully_shard(model, mesh=mesh(2, world() // 2, names=("replicate", "shard")))
    return None, mine()


def sharded_along_one_dimension(model: Any) -> tuple[Any, Tensor]:
    fully_shard(model, mesh=mesh(1, world(), names=("replicate", "shard")))
    return None, mine()


def tensor_parallel(model: Any) -> tuple[Any, Tensor]:
    """`scale` is whole, and all ranks see all pictures."""
    parallelize_module(model, mesh(world()), {"first": ColwiseParallel(), "second": RowwiseParallel()})
    return dist.group.WORLD, X


def tensor_parallel_on_several_batches(model: Any) -> tuple[Any, Tensor]:
    """With 2 ranks each has a whole model, in DTensors, and the optimizer averages."""
    both = mesh(2, world() // 2, names=("data", "tensor"))
    parallelize_module(model, both["tensor"], {"first": ColwiseParallel(), "second": RowwiseParallel()})
    return both.get_group("data"), X[both.get_local_rank("data") :: 2]


def sharded_in_two_ways(model: Any) -> tuple[Any, Tensor]:
    both = mesh(2, world() // 2, names=("data", "tensor"))
    parallelize_module(model, both["tensor"], {"first": ColwiseParallel(), "second": RowwiseParallel()})
    fully_shard(model.first, mesh=both["data"])
    fully_shard(model.second, mesh=both["data"])
    return both.get_group("data"), X[both.get_local_rank("data") :: 2]


def sums_that_are_still_to_be_taken(model: Any) -> tuple[Any, Tensor]:
    """Replicated parameters, and a batch that is sharded: the gradients that autograd gives are partial sums."""
    where = mesh(world())
    distribute_module(model, where)
    return None, distribute_tensor(X, where, [Shard(0)])


LAYOUTS: dict[str, Callable[[Any], tuple[Any, Tensor]]] = {
    layout.__name__: layout
    for layout in (
        everything_sharded,
        mixed_with_whole,
        replicated_and_sharded,
        sharded_along_one_dimension,
        tensor_parallel,
        tensor_parallel_on_several_batches,
        sharded_in_two_ways,
        sums_that_are_still_to_be_taken,
    )
}


def whole(tensor: Any) -> Tensor:
    result: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return result.detach().clone()


def found_in(model: nn.Module, opt: Any) -> Found:
    found = {name: whole(p) for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        found |= {f"{name}, {key}": whole(value) for key, value in opt.state.get(p, {}).items() if value is not None}
    return found | dict(zip(("cosine", "steps", "conflicts", "non-finite", "absent"), opt.conflict, strict=True))


def trained(
    layout: Callable[[Any], tuple[Any, Tensor]] | None,
    kind: str = "adamw",
    way: str = "composable",
    steps: int = 3,
    dtype: torch.dtype = torch.float64,
    hidden: int = 4,
    **settings: Any,
) -> Found:
    """What a few steps lead to; without a layout in one process on the whole batch."""
    model = Model(dtype, hidden)
    group, x = (None, X) if layout is None else layout(model)
    # a whole conflict of a single element leaves rounding alone
    settings = settings if "rule" in settings else {"lambda_": 0.8} | settings
    opt = OPTIMIZERS[kind](list(model.parameters()), process_group=group, **settings)
    for _ in range(steps):
        opt.zero_grad()
        WAYS[way](opt, *losses(model, x))
    return found_in(model, opt)


def all_trained(layout: Callable[[Any], tuple[Any, Tensor]] | None) -> dict[str, Found]:
    """Every optimizer, scope and way, and every rule."""
    found = {}
    for kind, scope, way in itertools.product(OPTIMIZERS, SCOPES, ("composable", "one call")):
        found[f"{kind}, {scope}, {way}"] = trained(layout, kind, way, scope=scope)
    for (name, rule), scope in itertools.product(RULES.items(), SCOPES):
        way = "one call" if scope == "tensor" else "composable"
        found[f"{name}, {scope}"] = trained(layout, "sgd", way, hidden=3, scope=scope, rule=rule())
    return found


def few_trained(layout: Callable[[Any], tuple[Any, Tensor]] | None) -> dict[str, Found]:
    return {scope: trained(layout, way="one call", scope=scope) for scope in SCOPES}


def in_float32(layout: Callable[[Any], tuple[Any, Tensor]] | None) -> Found:
    """One step of SGD: the gradients themselves."""
    return trained(layout, "sgd", steps=1, dtype=torch.float32, hidden=3)


# ---- further cases; without ranks they say what one process finds


def accumulated(ranks: bool) -> list[Found]:
    """Sums, clipped gradients, losses that are scaled, and one whose general gradient overflows."""
    results = []
    for way in ("composable", "one call"):
        model = Model()
        # a GradScaler's own `unscale_` takes no mixture
        layout = mixed_with_whole if way == "one call" else everything_sharded
        group, x = layout(model) if ranks else (None, X)
        opt = OPTIMIZERS["sgd"](list(model.parameters()), process_group=group)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for step in range(3):
            opt.zero_grad()
            with opt.accumulate():
                opt.backward(*losses(model, x.cos()), scaler=scaler)
            task, general = losses(model, x)
            general = general * (torch.inf if step == 1 and (not ranks or dist.get_rank() == 0) else 1.0)
            if way == "one call":
                opt.backward_and_update(task, general, scaler=scaler)
            else:
                opt.backward(task, general, scaler=scaler)
                scaler.unscale_(opt)
                if step != 1:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                scaler.step(opt)
            scaler.update()
        found = {name: whole(p) for name, p in model.named_parameters()}
        results.append(found | {"scale of the losses": torch.tensor(scaler.get_scale())})
    return results


def weighted(ranks: bool) -> Found:
    """The first ranks see one picture each, the last one the others."""
    model = Model()
    group, x, weight = None, X, None
    if ranks:
        group, _ = mixed_with_whole(model)
        last = dist.get_rank() == world() - 1
        x = X[dist.get_rank() :] if last else X[dist.get_rank() : dist.get_rank() + 1]
        weight = len(x)
    opt = OPTIMIZERS["sgd"](list(model.parameters()), lambda_=0.8, process_group=group)
    for _ in range(2):
        opt.zero_grad()
        opt.backward(*losses(model, x), weight=weight)
        opt.step()
    return found_in(model, opt)


def below_the_floor(ranks: bool) -> list[Tensor]:
    """A general gradient is rounding beside the task gradient of the whole tensor, not beside that of each part."""
    results = []
    for scope, floor in itertools.product(SCOPES, (1e-3, 1e-8)):
        p: Any = nn.Parameter(torch.ones(4, 2))
        a, b = torch.ones(4, 2), torch.zeros(4, 2)
        a[-1], b[-1] = 1e-6, -1e-6
        if ranks:
            where = mesh(world())
            p, a, b = (distribute_tensor(tensor, where, [Shard(0)]) for tensor in (p, a, b))
            p = nn.Parameter(p.detach())
        opt = pf.ProGradSGD([p], lr=1.0, scope=scope, noise_floor=floor)
        opt.backward((p * a).sum(), (p * b).sum())
        results += [whole(p.grad), opt.conflict.absent]
    return results


def odd_in_one_part(ranks: bool) -> list[Tensor]:
    """A task gradient that begins as zero in half of the rows, and one that is not finite there: it counts for all."""
    p: Any = nn.Parameter(torch.ones(4, 2))
    half = torch.ones(4, 2)
    half[2:] = 0.0
    gradients = [half, torch.ones(4, 2), 1 / half, torch.ones(4, 2)]
    if ranks:
        where = mesh(world())
        p = nn.Parameter(distribute_tensor(p.detach(), where, [Shard(0)]))
        gradients = [distribute_tensor(a, where, [Shard(0)]) for a in gradients]
    opt = pf.ProGradSGD([p], lr=0.1, rule=pf.rules.Bloop(0.5, 0.5))
    results = []
    for a in gradients:
        opt.backward_and_update((p * a).sum(), p.sum())
        results.append(whole(opt.state[p]["task_average"]))
    q = nn.Parameter(p.detach().nan_to_num(0.0, 0.0, 0.0))
    opt, scaler = pf.ProGradSGD([q], lr=0.1), torch.amp.GradScaler("cpu", init_scale=4.0)
    for a in gradients[1:3]:
        opt.backward_and_update((q * a).sum(), q.sum(), scaler=scaler)
        scaler.update()
        results += [whole(q), torch.tensor(scaler.get_scale())]
    return results


def states(model: nn.Module, opt: Any) -> Found:
    """All that a checkpoint holds, by name."""
    of_model, of_opt = get_state_dict(model, opt)
    found = {name: whole(value) for name, value in of_model.items()}
    for name, state in of_opt["state"].items():
        found |= {f"{name}, {key}": whole(value) for key, value in state.items() if isinstance(value, Tensor)}
    for g, group in enumerate(of_opt["param_groups"]):
        found |= {f"{key}, {g}": torch.tensor(x) for key, x in group.items() if isinstance(x, float | int)}
    return found


SAVED = {"adamw": lambda: pf.rules.Bloop(0.8, 0.5), "sgd": lambda: pf.rules.GradVac(0.3), "wrapper": lambda: None}


def saved_and_loaded(folder: Path, layout: Callable[[Any], tuple[Any, Tensor]] | None, save: bool) -> dict[str, Found]:
    """What is in a checkpoint of torch.distributed.checkpoint: before it is saved, or after it is loaded."""
    found = {}
    for kind, rule in SAVED.items():
        model = Model(torch.float32, hidden=3)
        group, x = (None, X) if layout is None else layout(model)
        settings: dict[str, Any] = {"rule": rule()} if rule() else {"lambda_": 0.25 if save else 1.0}
        opt = OPTIMIZERS[kind](list(model.parameters()), process_group=group, **settings)
        if save:
            for _ in range(2):
                opt.zero_grad()
                opt.backward(*losses(model, x))
                opt.step()
            opt.zero_grad()
        of_model, of_opt = get_state_dict(model, opt)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # in one process
            if save:
                dcp.save({"model": of_model, "optimizer": of_opt}, checkpoint_id=folder / kind)
            else:
                dcp.load({"model": of_model, "optimizer": of_opt}, checkpoint_id=folder / kind)
                set_state_dict(model, opt, model_state_dict=of_model, optim_state_dict=of_opt)
        found[kind] = states(model, opt)
        opt.backward_and_update(*losses(model, x))  # goes on
    return found


# ---- what the ranks run


def error_of(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def communication(rank: int) -> Any:
    """Collectives of a backward of our own: FSDP gathers and scatters, and does not reduce to all."""
    found = {}
    for name, rule in {"none": None, "GradVac": pf.rules.GradVac(0.3)}.items():
        for scope in SCOPES:
            model = Model()
            everything_sharded(model)
            opt = OPTIMIZERS["adamw"](list(model.parameters()), scope=scope, rule=rule)
            opt.backward(*losses(model, mine()))
            with CommDebugMode() as counted:
                opt.backward(*losses(model, mine()))
            of_kinds = {str(kind): n for kind, n in counted.get_comm_counts().items()}
            found[name, scope] = sum(n for kind, n in of_kinds.items() if "reduce_" in kind and "scatter" not in kind)
    return found


def left_alone(rank: int) -> Any:
    """Post-accumulate hooks run once, at the end; nothing happens to parameters of other optimizers."""
    model = Model()
    mixed_with_whole(model)
    own, other = list(model.first.parameters()) + list(model.second.parameters()), model.scale
    opt = OPTIMIZERS["sgd"](own, process_group=dist.group.WORLD)
    seen: list[Any] = []
    for p in own:
        p.register_post_accumulate_grad_hook(lambda p: seen.append(whole(p.grad)))
    other.register_post_accumulate_grad_hook(lambda p: seen.append("other"))
    other.grad = torch.ones_like(other)
    own[0].grad = torch.zeros_like(own[0])
    opt.backward(*losses(model, mine()))
    return [torch.equal(x, whole(p.grad)) for x, p in zip(seen, own, strict=True)], other.grad.tolist()


@contextmanager
def refused(found: list[str]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        found.append(f"{type(error).__name__}: {error}")
    else:
        found.append("nothing")


def disagreements(rank: int) -> Any:
    """Of one rank with the others: each is told what differs, in one line, before anything is sent or moved."""
    found: list[str] = []
    kinds: list[tuple[tuple[int, ...], dict[str, Any]]] = [
        ((3,), {"lambda_": 1.0 if rank else 0.5}),
        ((3,), {"lr": 1.0 if rank else 0.5}),
        ((3,), {"scope": "row" if rank else "tensor"}),
        ((3,), {"rule": pf.rules.GradVac(0.1 if rank else 0.2)}),
        ((3 + rank,), {}),
    ]
    for shape, settings in kinds:
        p = nn.Parameter(torch.ones(shape))
        opt = pf.ProGradSGD([p], **({"lr": 1.0, "process_group": dist.group.WORLD} | settings))
        with refused(found):
            opt.backward(p.sum(), -p.sum())
    some = [nn.Parameter(torch.ones(2)) for _ in range(1 + rank)]
    opt = pf.ProGradSGD(some, lr=1.0, process_group=dist.group.WORLD)
    with refused(found):
        opt.backward_and_update(sum(p.sum() for p in some), -some[0].sum())
    q: Any = nn.Parameter(distribute_tensor(torch.ones(4), mesh(world()), [Shard(0)]))
    with refused(found):
        pf.ProGradSGD([q], lr=1.0 + rank).backward(q.sum(), -q.sum())
    return found, some[0].tolist()


def silent(rank: int) -> Any:
    """One rank does not come to the backward: the others are told within the time-out of their group."""
    group = dist.new_group(timeout=datetime.timedelta(seconds=1))
    p = nn.Parameter(torch.ones(3))
    opt = pf.ProGradSGD([p], lr=1.0, process_group=group)
    opt.backward(p.sum(), -p.sum())
    p.grad = None
    if rank == 0:
        return "nothing", True, 0.0
    began = time.monotonic()
    error = error_of(lambda: opt.backward(p.sum(), -p.sum()))
    return error, p.grad is None, time.monotonic() - began


def bad(rank: int) -> Any:
    """What is refused, the same on all ranks."""
    found: list[str] = []
    where = mesh(world())
    p: Any = nn.Parameter(distribute_tensor(torch.ones(4, 2), where, [Shard(0)]))
    opt = pf.ProGradSGD([p], lr=1.0)
    with refused(found):
        opt.backward(p.sum(), p.sum(), create_graph=True)
    partial: Any = nn.Parameter(DTensor.from_local(torch.ones(4), where, [Partial()]))
    with refused(found):
        pf.ProGradSGD([partial], lr=1.0).backward(partial.sum(), partial.sum())
    with opt.accumulate():
        opt.backward(p.sum(), p.sum())
    with refused(found):
        opt.backward(p.sum(), p.sum(), weight=2)
    opt.zero_grad()
    opt.backward(p.sum(), -p.sum())
    opt.step()
    opt.state[p]["momentum_buffer"] = torch.ones(4, 2)
    opt.param_groups[0]["momentum"] = 0.5
    with refused(found):
        opt.step()
    model = Model()
    everything_sharded(model)
    model.set_requires_gradient_sync(False)
    with refused(found):
        OPTIMIZERS["sgd"](list(model.parameters())).backward(*losses(model, mine()))
    flat = type("FlatParameter", (nn.Parameter,), {})(torch.ones(2))
    with refused(found):
        pf.ProGradSGD([flat], lr=1.0, process_group=dist.group.WORLD).backward(flat.sum(), flat.sum())
    if world() == 4:
        both = mesh(2, 2, names=("data", "tensor"))
        q: Any = nn.Parameter(distribute_tensor(torch.ones(4), both["tensor"], [Shard(0)]))
        with refused(found):
            pf.ProGradSGD([q], lr=1.0, process_group=dist.group.WORLD).backward(q.sum(), q.sum())
    return found


def copied(rank: int) -> Any:
    """A copy goes on by itself."""
    p: Any = nn.Parameter(distribute_tensor(torch.ones(4), mesh(world()), [Replicate()]))
    opt = pf.ProGradSGD([p], lr=1.0)
    opt.backward(p.sum(), -2 * p.sum())
    q, twin = copy.deepcopy((p, opt))
    twin.backward_and_update(q.sum(), 2 * q.sum())
    return [whole(p).tolist() for group in (*twin.param_groups, *opt.param_groups) for p in group["params"]]


PRECISIONS = list(itertools.product(("adamw", "sgd"), ("composable", "one call")))


def with_moments_in_float32(layout: Callable[[Any], tuple[Any, Tensor]] | None) -> list[Found]:
    return [trained(layout, kind, way, state_dtype=torch.float32) for kind, way in PRECISIONS]


def rounded(rank: int) -> list[Tensor]:
    """256 equal elements, half-way between two of bfloat16's, by one step in either way: this rank's part."""
    found = []
    for way in ("composable", "one call"):
        p: Any = nn.Parameter(distribute_tensor(torch.ones(256, dtype=torch.bfloat16), mesh(world()), [Shard(0)]))
        opt = pf.ProGradSGD([p], lr=2.0**-8, stochastic_rounding=3)
        WAYS[way](opt, -p.sum(), -p.sum())
        found.append(p.detach().to_local().float())
    return found


CASES: dict[str, Callable[[int], Any]] = {
    "all": lambda rank: all_trained(mixed_with_whole),
    **{name: lambda rank, layout=layout: few_trained(layout) for name, layout in LAYOUTS.items()},  # type: ignore[misc]
    "moments": lambda rank: with_moments_in_float32(mixed_with_whole),
    "float32": lambda rank: [in_float32(layout) for layout in (everything_sharded, mixed_with_whole)],
    "accumulated": lambda rank: accumulated(True),
    "weighted": lambda rank: weighted(True),
    "below the floor": lambda rank: below_the_floor(True),
    "odd in one part": lambda rank: odd_in_one_part(True),
    "loaded": lambda rank: saved_and_loaded(folder_of_ranks() / "of one", everything_sharded, save=False),
    "saved": lambda rank: saved_and_loaded(folder_of_ranks() / "of ranks", everything_sharded, save=True),
    "reloaded": lambda rank: saved_and_loaded(folder_of_ranks() / "of ranks", replicated_and_sharded, save=False),
    **{case.__name__: case for case in (communication, left_alone, disagreements, silent, bad, copied, rounded)},
}


@pytest.fixture(scope="module", params=slow_but_for([2], [2, 4]))
def results(request: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What every case returned on each rank; and what one process has saved and loaded, before and after."""
    folder = tmp_path_factory.mktemp("ranks")
    saved = saved_and_loaded(folder / "of one", None, save=True)
    found = found_on_ranks(__name__, request.param, folder)
    failed = {f"{case}: {one}" for case, of in found.items() for one in of if str(one).startswith("Traceback")}
    assert not failed, "\n".join(failed)
    loaded = saved_and_loaded(folder / "of ranks", None, save=False)
    return found | {"one saved": saved, "one loaded": loaded}


def check(
    found: Any, expected: Any, kind: str = "formula", dtype: torch.dtype = torch.float64, where: str = ""
) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for name in expected:
            check(found[name], expected[name], kind, dtype, f"{where}, {name}")
    elif isinstance(expected, list):
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            check(one, other, kind, dtype, f"{where}, {i}")
    else:
        assert found.isnan().equal(expected.isnan()), where
        try:
            rounded = torch.float32 if expected.dtype == torch.float32 else dtype  # as cosines are
            assert_close(found.nan_to_num(), expected.nan_to_num(), kind, rounded)
        except AssertionError as error:
            raise AssertionError(f"{where}: {error}") from None


def test_the_numbers_are_those_of_one_process(results: dict[str, Any]) -> None:
    """Of each optimizer, scope, way and rule, with the state, the memory and the counters."""
    expected = all_trained(None)
    for found in results["all"]:
        assert found.keys() == expected.keys()
        for name in expected:
            # sines of units of one element are roots of what rounding leaves of 1 - 1
            rooted = name.startswith(("GradVac", "CAGrad"))
            check(found[name], expected[name], "ranks" if rooted else "formula", *[torch.float32] * rooted, where=name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_wherever_the_parts_are(results: dict[str, Any], layout: str) -> None:
    expected = few_trained(None)
    for found in results[layout]:
        check(found, expected)


def test_float32(results: dict[str, Any]) -> None:
    for found in results["float32"]:
        check(found, [in_float32(None)] * 2, "ranks", torch.float32)


def test_moments_in_float32(results: dict[str, Any]) -> None:
    for found in results["moments"]:
        check(found, with_moments_in_float32(None), "ranks", torch.float32)
        assert found[0]["first.weight, exp_avg"].dtype == torch.float32


def test_parts_are_rounded_by_random_numbers_of_their_own(results: dict[str, Any]) -> None:
    parts = [ways[0] for ways in results["rounded"]]
    assert all(torch.equal(*ways) for ways in results["rounded"])
    assert torch.cat(parts).unique().tolist() == [1, 1 + 2**-7]
    assert 0.3 < (torch.cat(parts) > 1).float().mean() < 0.7  # of 256: beyond six standard deviations
    assert not any(torch.equal(*pair) for pair in itertools.combinations(parts, 2))


def test_sums_clipping_and_scaled_losses(results: dict[str, Any]) -> None:
    expected = accumulated(False)
    assert expected[0]["scale of the losses"] == 512
    for found in results["accumulated"]:
        check(found, expected)


def test_uneven_batches(results: dict[str, Any]) -> None:
    for found in results["weighted"]:
        check(found, weighted(False))


def test_the_noise_floor_is_that_of_the_whole(results: dict[str, Any]) -> None:
    for found in results["below the floor"]:
        check(found, below_the_floor(False), "formula", torch.float32)


def test_what_is_odd_in_one_part(results: dict[str, Any]) -> None:
    expected = odd_in_one_part(False)
    assert expected[-1] == 2  # the scale of the losses fell
    for found in results["odd in one part"]:
        check(found, expected, "formula", torch.float32)


def test_checkpoints_of_other_numbers_of_ranks(results: dict[str, Any]) -> None:
    """They come back bit by bit, with the memory of rules and λ."""
    for found in results["loaded"]:
        assert same_bits(found, results["one saved"])
    for found in (*results["reloaded"], results["one loaded"]):
        assert same_bits(found, results["saved"][0])
    names = {name.split(", ")[-1] for name in results["saved"][0]["adamw"]}
    assert {"exp_avg", "task_average"} <= names
    assert "first.weight, target_cosine" in results["saved"][0]["sgd"]
    assert results["one loaded"]["wrapper"]["lambda_, 0"] == 0.25


def same_bits(found: Any, expected: Any) -> bool:
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same_bits(found[name], expected[name]) for name in expected)
    return torch.equal(found, expected)


def test_one_collective_a_backward(results: dict[str, Any]) -> None:
    for found in results["communication"]:
        assert set(found.values()) == {1}, found


def test_what_is_not_ours_is_left_alone(results: dict[str, Any]) -> None:
    for hooks, other in results["left_alone"]:
        assert hooks == [True] * 4
        assert other == [1, 1, 1]


def test_ranks_that_do_not_agree(results: dict[str, Any]) -> None:
    expected = [
        "lambda_ of group 0 is '0.5' in process 0 and '1.0' in process 1",
        "lr of group 0 is '0.5' in process 0 and '1.0' in process 1",
        "scope is 'tensor' in process 0 and 'row' in process 1",
        "rule is 'GradVac(beta=0.2)' in process 0 and 'GradVac(beta=0.1)' in process 1",
        "parameter 0 of group 0 is ((3,), ",
        "the number of parameters of group 0 is 1 in process 0 and 2 in process 1",
        "lr of group 0 is '1.0' in process 0 and '2.0' in process 1",
    ]
    for found, p in results["disagreements"]:
        assert p == [1, 1]
        for message, told in zip(expected, found, strict=True):
            assert told.startswith(f"ValueError: backward: the processes do not agree: {message}"), told


def test_a_rank_that_does_not_come(results: dict[str, Any]) -> None:
    for error, no_gradient, seconds in results["silent"][1:]:
        assert error.startswith("ConnectionError: backward: another process has ended, or did not answer within")
        assert "\n" not in error
        assert no_gradient
        assert seconds < 30  # of the default group


def test_what_is_refused(results: dict[str, Any]) -> None:
    expected = [
        "ValueError: create_graph: expected False where parameters are sharded",
        "TypeError: backward: expected a parameter whose parts can be read, got placements (Partial(sum),)",
        "ValueError: weight: expected None in the backward that closes a sum of sharded gradients",
        "RuntimeError: step: momentum_buffer of parameter 0 of group 0, shape (4, 2) on cpu: expected the placements",
        "ValueError: task: expected a loss that depends on a parameter of this optimizer, got one that reaches none",
        "TypeError: backward: expected whole parameters or DTensors, got one of FullyShardedDataParallel (FSDP1)",
        "ValueError: process_group: expected ranks that all share a parameter, or of which this one alone does",
    ]
    for found in results["bad"]:
        for told, message in zip(found, expected, strict=False):
            assert told.startswith(message), told
            assert "\n" not in told


def test_a_copy(results: dict[str, Any]) -> None:
    for found in results["copied"]:
        assert found == [[0.0] * 4, [1.0] * 4]
