"""Guards ranks that share a class list: features and gradients of a single process, for a part of its work.

Four processes run all cases, each after the other. Each computes what is expected by itself, without the others.
"""

import copy
import pickle
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import prograd_fast as pf
from prograd_fast.clip import class_parallel
from tests.on_ranks import found_on_ranks
from tests.tiny_clip import CLASS_NAMES, CUT, TOKENIZER, WHOLE, tiny_clip
from tests.tolerances import assert_close

RANKS = 4
MANY = [f"{first} {second}" for first in CLASS_NAMES for second in ("owl", "grey horse", "x", "long haired sea animal")]
Pair = tuple[Tensor, Tensor]  # with ranks, alone
GROUPS: dict[str, dist.ProcessGroup] = {}  # made once, by all ranks: a pair of dimensions, and the other one


def group_of_one() -> dist.ProcessGroup:
    """A group of this rank; made once, by all of them in the same case."""
    if "alone" not in GROUPS:
        GROUPS["alone"] = dist.new_subgroups(1)[0]
    return GROUPS["alone"]


def both(names: list[str], model: Any = None, **settings: Any) -> tuple[Any, Any]:
    """A net whose classes all ranks share, and one that encodes them alone."""
    model = model or tiny_clip()
    torch.manual_seed(0)
    alone = pf.clip.PromptedCLIP(model, TOKENIZER, names, **({"n_ctx": 3} | settings))
    return alone.with_classes(names, class_group=dist.group.WORLD), alone


def features_and_gradients(net: Any, *inputs: Tensor, **options: Any) -> list[Tensor]:
    inputs = tuple(x.detach().clone().requires_grad_() for x in inputs)
    features = net.class_features(*inputs, **options)
    generator = torch.Generator().manual_seed(5)
    cotangent = torch.randn(features.shape, generator=generator, dtype=features.dtype)
    return [features.detach(), *torch.autograd.grad(features, inputs, cotangent)]


# ---- the cases; each runs on all ranks


def towers(rank: int) -> list[Pair]:
    """Packed, unpacked and whole ones; lists that are uneven, and shorter than there are ranks."""
    pairs: list[Pair] = []
    for make in (CUT["CLIP"], CUT["other attention block"], WHOLE["not causal"]):
        for names in (CLASS_NAMES, CLASS_NAMES[:2], CLASS_NAMES[:1]):
            for class_specific in (False, True):
                net, alone = both(names, make(), class_specific=class_specific)
                ctx = net.prompt.ctx
                pairs += zip(features_and_gradients(net, ctx), features_and_gradients(alone, ctx), strict=True)
    return pairs


def ways(rank: int) -> list[Pair]:
    """Several contexts, deep prompts, class tokens, features that are not normalised, names in front, chunks."""
    pairs: list[Pair] = []
    for make in (CUT["CLIP"], CUT["other attention block"]):
        for settings in (
            {},
            {"max_memory": 8e5},
            {"class_token_position": "front"},
            {"class_token_position": "middle"},
        ):
            net, alone = both(MANY, make(), **settings)
            several = torch.stack([net.prompt.ctx, 0.5 * net.prompt.ctx])
            inputs: list[tuple[Tensor, ...]] = [(several,)]
            if not settings:
                inputs.append((net.prompt.ctx, 0.1 * net.prompt.ctx[None].detach()))
            for one in inputs:
                for unit in (True, False):
                    found, wanted = (features_and_gradients(n, *one, unit=unit) for n in (net, alone))
                    pairs += zip(found, wanted, strict=True)
            if "class_token_position" not in settings:
                generator = torch.Generator().manual_seed(3)
                tokens = torch.randn(len(MANY), 3, 32, dtype=torch.float64, generator=generator)
                found, wanted = (features_and_gradients(n, several, tokens, before=1) for n in (net, alone))
                pairs += zip(found, wanted, strict=True)
    return pairs


def batched(rank: int) -> tuple[list[Pair], list[int]]:
    """K cotangents at once go in one collective."""
    pairs, counts = [], []
    for make in (CUT["CLIP"], CUT["other attention block"]):
        gradients = []
        for net in both(MANY, make()):
            features = net.class_features()
            generator = torch.Generator().manual_seed(2)
            cotangents = torch.randn(3, *features.shape, generator=generator, dtype=features.dtype)
            for _ in range(2):  # in the first one the ranks compare their batches
                ctx = net.prompt.ctx
                with CommDebugMode() as mode:
                    gradient = lambda c, f=features, x=ctx: torch.autograd.grad(f, x, c, retain_graph=True)[0]  # noqa: E731
                    g = torch.func.vmap(gradient)(cotangents)
            gradients.append(g)
            counts.append(mode.get_total_counts())
        pairs.append((gradients[0], gradients[1]))
    return pairs, counts


X = F.normalize(torch.randn(8, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64), dim=-1)
LABELS = torch.tensor([0, 1, 2, 3, 4, 4, 2, 19])


def losses(net: Any, teacher: Any, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
    return pf.DualLoss()(net.logits(X[rows]), teacher.logits(X[rows]), LABELS[rows])


def step_in_one_collective(rank: int) -> Any:
    """Both gradients of a step are sent together, and the features once."""
    net, _ = both(MANY)
    teacher = pf.clip.ZeroShotTeacher(net.model, TOKENIZER, MANY, "a {}.")
    opt = pf.ProGradSGD([net.prompt.ctx], lr=0.1, process_group=group_of_one())
    opt.backward(*losses(net, teacher))
    with CommDebugMode() as forward:
        losses(net, teacher)
    two = losses(net, teacher)  # outside: that mode hooks modules, where backwards do not meet
    with CommDebugMode() as backward:
        opt.backward(*two)
    return forward.get_total_counts(), backward.get_total_counts()


# by name: the dimensions of the mesh, and whether the optimizer averages over all ranks
MESHES = {
    "classes alone": ((1, RANKS), False),
    "data and classes": ((2, 2), False),
    "process_group with all ranks": ((2, 2), True),
    "data alone": ((RANKS, 1), False),
}


def meshes(rank: int) -> list[Pair]:
    """Ranks of "data" average, ranks of "classes" add up: together they are one process on the whole batch."""
    pairs: list[Pair] = []
    parts = {1: [slice(0, 8)], 2: [slice(0, 3), slice(3, 8)], 4: [slice(0, 1), slice(1, 4), slice(4, 6), slice(6, 8)]}
    for shape, with_all in MESHES.values():
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("data", "classes"))
        part = parts[shape[0]][mesh.get_local_rank("data")]
        group = dist.group.WORLD if with_all else mesh.get_group("data")
        torch.manual_seed(rank)  # the first rank's start counts
        results = []
        net = pf.clip.PromptedCLIP(tiny_clip(), TOKENIZER, MANY, 3, class_group=mesh.get_group("classes"))
        dist.broadcast(net.prompt.ctx.data, 0)  # as DistributedDataParallel does for the ranks of "data"
        alone = pf.clip.PromptedCLIP(net.model, TOKENIZER, MANY, None, net.prompt.ctx.detach().clone())
        teacher = pf.clip.ZeroShotTeacher(net.model, TOKENIZER, MANY, "a {}.")
        for one, rows, process_group, weight in ((net, part, group, len(X[part])), (alone, slice(0, 8), None, None)):
            ctx = one.prompt.ctx
            opt = pf.ProGradSGD([ctx], lr=0.5, momentum=0.9, process_group=process_group or group_of_one())
            for _ in range(3):
                opt.zero_grad()
                opt.backward(*losses(one, teacher, rows), weight=weight)
                opt.step()
            results.append(torch.cat([ctx.detach().flatten(), opt.conflict.cosine.double()]))
        pairs.append((results[0], results[1]))
    return pairs


def start(rank: int) -> Tensor:
    """A random start is that of the first rank."""
    torch.manual_seed(rank)
    net = pf.clip.PromptedCLIP(tiny_clip(), TOKENIZER, MANY, 3, class_group=dist.group.WORLD)
    return net.prompt.ctx.detach()


def teachers(rank: int) -> list[Pair]:
    pairs: list[Pair] = []
    templates = ["a photo of a {}.", "{}, which is long, indeed."]
    for make in (CUT["CLIP"], CUT["other attention block"], WHOLE["not causal"]):
        for names in (MANY, CLASS_NAMES[:2]):
            model = make()
            shared = pf.clip.ZeroShotTeacher(model, TOKENIZER, names, templates, class_group=dist.group.WORLD)
            alone = pf.clip.ZeroShotTeacher(model, TOKENIZER, names, templates)
            pairs.append((shared.class_features, alone.class_features))
    return pairs


def flops(rank: int) -> tuple[int, int]:
    """Of a forward and a backward: with ranks, alone."""
    counts = []
    for net in both(MANY):
        with FlopCounterMode(display=False) as counter:
            features_and_gradients(net, net.prompt.ctx)
        counts.append(counter.get_total_flops())
    return counts[0], counts[1]


def error_of(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def disagreements(rank: int) -> list[str]:
    """Another name, a list of another length, another context, other templates."""
    model, world = tiny_clip(), dist.group.WORLD
    last = rank == RANKS - 1
    other = ["owl", *CLASS_NAMES[1:]] if last else CLASS_NAMES
    shorter = CLASS_NAMES[:-1] if last else CLASS_NAMES
    net, teacher = pf.clip.PromptedCLIP, pf.clip.ZeroShotTeacher
    calls: list[Callable[[], object]] = [
        lambda: net(model, TOKENIZER, other, 3, class_group=world),
        lambda: net(model, TOKENIZER, shorter, 3, class_group=world),
        lambda: net(model, TOKENIZER, CLASS_NAMES, 3 + last, class_group=world),
        lambda: teacher(model, TOKENIZER, CLASS_NAMES, "the {}." if last else "a {}.", class_group=world),
    ]
    return [error_of(call) for call in calls]


def different_batches(rank: int) -> list[str]:
    """Ranks of class_group that see different pictures would step on a mixture of gradients."""
    errors = []
    for make in (CUT["CLIP"], CUT["other attention block"]):
        net, _ = both(MANY, make())
        errors.append(error_of(lambda net=net: net.logits(X[rank : rank + 2]).logsumexp(1).sum().backward()))
    return errors


def trained_tower(rank: int) -> str:
    net, _ = both(CLASS_NAMES)
    net.model.transformer.requires_grad_(True)
    return error_of(net.class_features)


def copies(rank: int) -> tuple[Tensor, Tensor, str]:
    net, _ = both(CLASS_NAMES)
    return (
        net.class_features().detach(),
        copy.deepcopy(net).class_features().detach(),
        error_of(lambda: pickle.dumps(net)),
    )


def no_group(rank: int) -> tuple[str, str]:
    of_one = dist.new_group([0])  # for the others it is no group
    model = tiny_clip()
    first = error_of(lambda: pf.clip.PromptedCLIP(model, TOKENIZER, CLASS_NAMES, 3, class_group=of_one))
    return first, error_of(lambda: pf.clip.ZeroShotTeacher(model, TOKENIZER, CLASS_NAMES, "a {}.", class_group=4))


CASES: dict[str, Callable[[int], Any]] = {
    case.__name__: case
    for case in (
        towers,
        ways,
        batched,
        step_in_one_collective,
        meshes,
        start,
        teachers,
        flops,
        disagreements,
        different_batches,
        trained_tower,
        copies,
        no_group,
    )
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What every case returned on each rank."""
    found = found_on_ranks(__name__, RANKS, tmp_path_factory.mktemp("classes"))
    failed = [result for of_ranks in found.values() for result in of_ranks if str(result).startswith("Traceback")]
    assert not failed, "\n".join(failed)
    return found


@pytest.mark.parametrize("case", ["towers", "ways", "teachers"])
def test_the_numbers_are_those_of_one_process(results: dict[str, list[Any]], case: str) -> None:
    """And every rank has the same bits."""
    for pairs in results[case]:
        for (found, expected), (first, _) in zip(pairs, results[case][0], strict=True):
            assert_close(found, expected, "formula", torch.float64)
            assert torch.equal(found, first)


def test_cotangents_in_batches(results: dict[str, list[Any]]) -> None:
    for pairs, counts in results["batched"]:
        for found, expected in pairs:
            assert_close(found, expected, "formula", torch.float64)
        assert counts == [1, 0] * 2


def test_both_gradients_are_sent_once(results: dict[str, list[Any]]) -> None:
    """The second counts the mean over the optimizer's process group, of one rank, too."""
    for counts in results["step_in_one_collective"]:
        assert counts == (1, 2)


@pytest.mark.parametrize("mesh", range(len(MESHES)), ids=list(MESHES))
def test_with_data_parallelism(results: dict[str, list[Any]], mesh: int) -> None:
    for pairs in results["meshes"]:
        found, expected = pairs[mesh]
        assert_close(found, expected, "trajectory", torch.float64)


def test_the_first_rank_gives_the_start(results: dict[str, list[Any]]) -> None:
    for ctx in results["start"]:
        assert torch.equal(ctx, results["start"][0])


def test_each_rank_has_a_part_of_the_work(results: dict[str, list[Any]]) -> None:
    """The prefix, 4 rows of 74, and one long name are all that keeps it from a quarter."""
    for together, alone in results["flops"]:
        assert 0 < together <= 0.35 * alone


def test_every_rank_is_told_where_they_do_not_agree(results: dict[str, list[Any]]) -> None:
    expected = (
        "class_names[0] is 'cat' in rank 0 and 'owl' in rank 3",
        "class_names has 5 entries in rank 0 and 4 in rank 3",
        "ctx is torch.float64 of shape (3, 32) in rank 0 and torch.float64 of shape (4, 32) in rank 3",
        "templates[0] is 'a {}.' in rank 0 and 'the {}.' in rank 3",
    )
    for errors in results["disagreements"]:
        for error, part in zip(errors, expected, strict=True):
            assert error.startswith(f"ValueError: class_group: its ranks do not agree: {part}. Give all")


def test_different_batches_are_refused(results: dict[str, list[Any]]) -> None:
    for errors in results["different_batches"]:
        for error in errors:
            assert error.startswith("RuntimeError: class_group: expected all of its ranks to differentiate the same")
            assert "process_group" in error


def test_a_trained_tower_is_refused(results: dict[str, list[Any]]) -> None:
    for error in results["trained_tower"]:
        assert error.startswith("RuntimeError: class_group: expected a frozen text tower")


def test_copies_share_the_group(results: dict[str, list[Any]]) -> None:
    for features, of_copy, error in results["copies"]:
        assert torch.equal(features, of_copy)
        assert error.startswith("TypeError: class_group: a net that shares its classes cannot be pickled")


def test_what_is_no_group(results: dict[str, list[Any]]) -> None:
    for rank, (of_others, number) in enumerate(results["no_group"]):
        assert of_others == "nothing" if rank == 0 else of_others.startswith("TypeError: class_group: expected a torch")
        assert number.startswith("TypeError: class_group: expected a torch.distributed.ProcessGroup")


@pytest.mark.parametrize(
    ("rows", "parts", "bounds"),
    [
        ([1, 1, 1, 1], 2, [0, 2, 4]),
        ([9, 1, 1, 1], 2, [0, 1, 4]),  # by rows, not by count
        ([3], 3, [0, 0, 1, 1]),
        ([1, 1], 5, [0, 0, 1, 1, 2, 2]),
        ([2, 3, 4], 1, [0, 3]),
    ],
)
def test_parts_are_balanced(rows: list[int], parts: int, bounds: list[int]) -> None:
    assert class_parallel.balanced(torch.tensor(rows), parts) == bounds


def test_parts_of_long_lists_are_as_even_as_their_longest_class() -> None:
    rows = torch.randint(1, 30, (1000,), generator=torch.Generator().manual_seed(0))
    for parts in (2, 3, 7, 64):
        bounds = class_parallel.balanced(rows, parts)
        assert bounds == sorted(bounds)
        assert (bounds[0], bounds[-1]) == (0, 1000)
        sums = [int(rows[i:j].sum()) for i, j in pairwise(bounds)]
        assert max(sums) - int(rows.sum()) / parts <= 30
