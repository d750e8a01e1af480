"""Guards the dtype of moments and stochastic rounding: the formulas, checkpoints either way, the same bits anywhere."""

import copy
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import prograd_fast as pf
from prograd_fast import reference
from prograd_fast.ops import rounding
from tests.ops.support import BACKENDS, running_on
from tests.tolerances import assert_close

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
WAYS: dict[str, Callable[[Any, Tensor, Tensor], object]] = {
    "two calls": lambda opt, task, general: (opt.zero_grad(), opt.backward(task, general), opt.step()),
    "one call": lambda opt, task, general: opt.backward_and_update(task, general),
}
ADAMW: dict[str, Any] = {"lr": 0.03, "betas": (0.8, 0.97), "weight_decay": 0.2, "amsgrad": True}
SGD: dict[str, Any] = {"lr": 0.03, "momentum": 0.8, "weight_decay": 0.2, "dampening": 0.1}
KINDS: dict[str, Callable[..., Any]] = {
    "adamw": lambda params, **options: pf.ProGradAdamW(params, **(ADAMW | options)),
    "sgd": lambda params, **options: pf.ProGradSGD(params, **(SGD | options)),
}
MOMENTS = {"adamw": ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"], "sgd": ["momentum_buffer"]}
both_kinds = pytest.mark.parametrize("kind", KINDS)


def parameters(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in ((16, 8), (5,))]


def losses(params: Sequence[Tensor], step: int) -> tuple[Tensor, Tensor]:
    """They conflict for some tensors at some steps."""
    task = [((p.double() - 0.1 * step).square() * (i + 1.0)).sum() for i, p in enumerate(params)]
    general = [(p.double() * (-1.0) ** (i + step)).sum() for i, p in enumerate(params)]
    return torch.stack(task).sum(), torch.stack(general).sum()


def run(opt: Any, params: Sequence[Tensor], steps: range = range(5), way: str = "one call") -> None:
    for step in steps:
        WAYS[way](opt, *losses(params, step))


def by_torch(kind: str, params: list[Tensor], steps: int) -> dict[str, list[Tensor]]:
    """The formula with torch.optim in float32, which sees parameters and gradients as they were stored."""
    wide = [p.detach().float().requires_grad_() for p in params]
    opt = torch.optim.AdamW(wide, **ADAMW) if kind == "adamw" else torch.optim.SGD(wide, **SGD)
    for step in range(steps):
        a, b = (torch.autograd.grad(loss, params) for loss in losses(params, step))
        for x, task, general in zip(wide, a, b, strict=True):
            dot = (task.double() * general.double()).sum().clamp(max=0)
            x.grad = (task.double() - dot / general.double().square().sum() * general.double()).float()
        opt.step()
        with torch.no_grad():
            for p, x in zip(params, wide, strict=True):
                p.copy_(x)
                x.copy_(p)
    return {name: [opt.state[x][name] for x in wide] for name in MOMENTS[kind]}


# ---- the dtype of moments


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@both_kinds
def test_moments_in_float32(kind: str, dtype: torch.dtype, backend: str) -> None:
    """Five steps; the moments are as exact as float32, where they differ from those in the parameter's dtype."""
    ours, theirs, narrow = parameters(dtype), parameters(dtype), parameters(dtype)
    opt, as_torch = KINDS[kind](ours, state_dtype=F32, noise_floor=0.0), KINDS[kind](narrow, noise_floor=0.0)
    with running_on(backend):
        run(opt, ours)
        run(as_torch, narrow)
    expected = by_torch(kind, theirs, 5)
    for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
        assert_close(p, q, "formula", dtype)
        for name in MOMENTS[kind]:
            assert opt.state[p][name].dtype == F32
            assert as_torch.state[narrow[i]][name].dtype == dtype
            assert_close(opt.state[p][name], expected[name][i], "formula", dtype)
            assert not torch.equal(opt.state[p][name], opt.state[p][name].to(dtype).float())


@pytest.mark.parametrize("scope", ["tensor", "row", "global"])
@both_kinds
def test_step_is_the_update_of_the_gradient(kind: str, scope: str) -> None:
    """What somebody did to `.grad` counts, and a conflict with nothing in it is no projection."""
    ours, theirs = parameters(F32), parameters(F32)
    opt, plain = KINDS[kind](ours, state_dtype=F32, scope=scope), KINDS[kind](theirs, scope=scope)
    for step in range(3):
        for one, params in ((opt, ours), (plain, theirs)):
            one.zero_grad()
            one.backward(*losses(params, step))
            torch.nn.utils.clip_grad_norm_(params[:1], 0.5)
            one.step()
    for p, q in zip(ours, theirs, strict=True):
        assert_close(p, q, "torch.optim", F32)


@both_kinds
def test_checkpoints_go_either_way(kind: str) -> None:
    params = parameters(BF16)
    opt = KINDS[kind](params, state_dtype=F32)
    run(opt, params)
    saved = copy.deepcopy(opt.state_dict())
    there = [torch.nn.Parameter(p.detach().clone()) for p in params]
    loaded = KINDS[kind](there, state_dtype=F32)
    seen: list[int] = []
    loaded.register_load_state_dict_pre_hook(lambda _, state: seen.append(len(state)))
    loaded.load_state_dict(saved)
    assert seen == [2]
    run(opt, params, range(5, 8))
    run(loaded, there, range(5, 8))
    assert all(torch.equal(p, q) for p, q in zip(params, there, strict=True))
    kept = {name: saved["state"][0][name] for name in MOMENTS[kind]}
    assert all(value.dtype == F32 for value in kept.values())
    # into torch.optim, which rounds it to the parameter's dtype as it loads; and out of it
    fresh = parameters(BF16)
    theirs = torch.optim.AdamW(fresh, **ADAMW) if kind == "adamw" else torch.optim.SGD(fresh, **SGD)
    theirs.load_state_dict(saved)
    loaded.load_state_dict(theirs.state_dict())
    for name, value in kept.items():
        assert torch.equal(theirs.state[fresh[0]][name], value.to(BF16))
        assert torch.equal(loaded.state[there[0]][name], value.to(BF16).float())


@both_kinds
def test_copies_keep_the_choice(kind: str) -> None:
    params = parameters(BF16)
    opt = KINDS[kind](params, state_dtype=F32, stochastic_rounding=1)
    for twin in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        own = twin.param_groups[0]["params"]
        run(twin, own)
        assert twin.state[own[0]][MOMENTS[kind][0]].dtype == F32


# ---- stochastic rounding


def bits_of(seed: int, step: int, tensor: int, element: int) -> int:
    """The 16 random bits in unsigned arithmetic, as SplitMix64 is published."""
    gamma, top = 0x9E3779B97F4A7C15, (1 << 64) - 1

    def mixed(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & top
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & top
        return z ^ (z >> 31)

    key = mixed((mixed((seed + step * gamma) & top) + tensor * gamma) & top)
    return mixed((key + (element + 1) * gamma) & top) >> 48


def test_known_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounded up exactly where the random bits and the 16 that are cut off carry over; in pieces of any size."""
    assert mixed_zero() == 0xE220A8397B1DCDAF  # the first number of SplitMix64 from 0
    x = torch.linspace(-3, 5, 42).reshape(6, 7)
    for seed, step, tensor in ((0, 1, 0), ((1 << 63) - 1, 70000, 3)):
        cut = x.view(torch.int32) & 0xFFFF
        up = [low + bits_of(seed, step, tensor, i) > 0xFFFF for i, low in enumerate(cut.flatten().tolist())]
        expected = ((x.view(torch.int32) >> 16) + torch.tensor(up).reshape(6, 7)).to(torch.int16).view(BF16)
        for piece in (1 << 20, 5):
            monkeypatch.setattr(rounding, "_PIECE", piece)
            assert torch.equal(reference.stochastic_rounding(x, seed, torch.tensor(float(step)), tensor), expected)
            assert torch.equal(reference.stochastic_rounding(x.T.contiguous().T, seed, step, tensor), expected)


def mixed_zero() -> int:
    return int(rounding._mixed(torch.tensor([rounding._GAMMA]))) % (1 << 64)


def test_the_mean_is_exact() -> None:
    """Within 5 standard deviations, for any fraction, sign, step, tensor and seed; only neighbours are taken."""
    n = 1 << 14
    for k, x in enumerate((1.3, -1.3, 1.0 + 2**-12, 2.0 - 2**-11, 1e-40, -3e38)):
        exact = torch.full((n,), x)
        rounded = reference.stochastic_rounding(exact, seed=k, step=k + 1, tensor=k)
        low, high = rounded.unique().double().tolist()
        x = float(exact[0])
        assert low < x < high
        between = torch.tensor([low, high]).to(BF16)
        assert abs(int(between.view(torch.int16).diff())) == 1
        share = (x - low) / (high - low)
        deviation = (share * (1 - share) / n) ** 0.5
        assert abs(float((rounded.double() == high).double().mean()) - share) < 5 * deviation


def test_what_is_not_rounded() -> None:
    x = torch.tensor(
        [0.0, -0.0, 1.0, -1.5, torch.inf, -torch.inf, torch.nan, -torch.nan, 2.0**-133, 3.3895313892515355e38]
    )
    for step in range(20):
        rounded = reference.stochastic_rounding(x, 0, step, 0)
        assert torch.equal(rounded.isnan(), x.isnan())
        assert torch.equal(rounded[~x.isnan()].float(), x[~x.isnan()])
        assert rounded[1].signbit()


@both_kinds
@pytest.mark.parametrize("way", WAYS)
def test_small_updates_arrive_in_the_mean(kind: str, way: str) -> None:
    """2^-12 below 1, sixty-four times: to nearest nothing moves."""
    moved = {}
    options: dict[str, Any] = {"lr": 2.0**-12, "weight_decay": 0.0}
    options |= {"betas": (0.0, 0.0), "eps": 0.0} if kind == "adamw" else {"momentum": 0.0, "dampening": 0.0}
    for seed in (None, 3):
        p = torch.nn.Parameter(torch.ones(2048, dtype=BF16))
        opt = KINDS[kind]([p], stochastic_rounding=seed, **options)
        for _ in range(64):
            WAYS[way](opt, p.sum(), p.sum())
        moved[seed] = 1 - p.detach().double()
    assert moved[None].abs().max() == 0
    # each of 64 steps moves by 2^-8 with a probability of 1/16
    deviation = 2.0**-8 * (64 / 16 * 15 / 16 / 2048) ** 0.5
    assert abs(float(moved[3].mean()) - 64 * 2.0**-12) < 5 * deviation
    assert moved[3].std() > 2.0**-8


def test_the_same_bits_on_every_backend_and_way() -> None:
    """Where the arithmetic is exact: powers of two. Another seed gives others, and equal tensors differ."""

    def after(backend: str, way: str, seed: int, groups: int = 1) -> Tensor:
        params = [torch.nn.Parameter(torch.ones(64, dtype=BF16)) for _ in range(2)]
        given: Any = params if groups == 1 else [{"params": [p]} for p in params]
        opt = pf.ProGradSGD(given, lr=2.0**-9, stochastic_rounding=seed)
        with running_on(backend):
            for _ in range(4):
                WAYS[way](opt, *(torch.cat([*params]).sum() for _ in range(2)))
        return torch.stack([p.detach() for p in params])

    expected = after(BACKENDS[0], "one call", 1)
    for backend in BACKENDS:
        for way in WAYS:
            for groups in (1, 2):
                assert torch.equal(after(backend, way, 1, groups), expected)
    assert not torch.equal(after(BACKENDS[0], "one call", 2), expected)
    assert not torch.equal(expected[0], expected[1])


@both_kinds
def test_a_run_that_is_resumed_rounds_as_one_that_was_not(kind: str) -> None:
    options: dict[str, Any] = {"state_dtype": F32, "stochastic_rounding": 5}
    params = parameters(BF16)
    opt = KINDS[kind](params, **options)
    run(opt, params, range(3))
    there = [torch.nn.Parameter(p.detach().clone()) for p in params]
    resumed = KINDS[kind](there, **options)
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    run(opt, params, range(3, 6))
    run(resumed, there, range(3, 6), way="one call")
    assert all(torch.equal(p, q) for p, q in zip(params, there, strict=True))


@both_kinds
def test_a_skipped_step_leaves_parameters_alone(kind: str) -> None:
    """It is not counted either: the next one rounds as if it had not been."""
    found = []
    for skips in (0, 2):
        params = parameters(BF16)
        before = [p.detach().clone() for p in params]
        opt = KINDS[kind](params, stochastic_rounding=1, state_dtype=F32)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
        for _ in range(skips):
            task, general = losses(params, 0)
            opt.backward_and_update(task * torch.inf, general, scaler=scaler)
            scaler.update()
            assert all(map(torch.equal, params, before))
        opt.backward_and_update(*losses(params, 0), scaler=scaler)
        assert opt.state[params[0]]["step"] == 1
        found.append(params)
    assert all(map(torch.equal, *found))


@both_kinds
def test_a_default_dtype_of_16_bits_counts_on(kind: str) -> None:
    """In bfloat16 256 + 1 is 256, and from there on every step would round alike."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(BF16)
    try:
        p = torch.nn.Parameter(torch.ones(3))
        opt = KINDS[kind]([p], stochastic_rounding=0)
        for _ in range(258):
            opt.backward_and_update(p.sum(), p.sum())
    finally:
        torch.set_default_dtype(default)
    assert opt.state[p]["step"] == 258


@pytest.mark.filterwarnings("ignore:.*never got a general gradient:UserWarning")
@pytest.mark.parametrize("options", [{"state_dtype": F32}, {"stochastic_rounding": 1}])
@both_kinds
def test_sparse_and_complex_gradients_are_refused(kind: str, options: dict[str, Any]) -> None:
    """As `backward` refuses them: the moments have no room for them. Nothing moves."""
    table = torch.nn.Embedding(5, 3, sparse=True)
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(TypeError, match=r"step: expected dense gradients .* torch.sparse_coo .*sparse=False"):
        KINDS[kind](table.parameters(), **options).step()
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))
    p.grad = torch.ones_like(p)
    with pytest.raises(TypeError, match=r"step: expected dense gradients .* torch.complex64 .*shape \(3,\)"):
        KINDS[kind]([p], **options).step()


# ---- what is refused


@both_kinds
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state_dtype": torch.int8}, "state_dtype: expected torch.float32 or another of"),
        ({"stochastic_rounding": -1}, "stochastic_rounding: expected a seed"),
        ({"stochastic_rounding": True}, "stochastic_rounding: expected a seed"),
        ({"state_dtype": F32, "fused": True}, "fused: expected it to be left out"),
        ({"stochastic_rounding": 0, "foreach": True}, "foreach: expected it to be left out"),
        ({"state_dtype": F32, "differentiable": True}, "differentiable: expected it to be left out"),
    ],
)
def test_refused(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KINDS[kind](parameters(BF16), **options)
