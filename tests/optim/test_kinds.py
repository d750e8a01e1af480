"""Guards each optimizer with each rule in each kind of training loop: scaled, through a proxy, with hooks, and so on.

Every setting differs from its default. What is done is done to the slow model too, and compared after each step.
"""

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from prograd_fast.ops.common import SCOPES
from tests.optim.side_by_side import OPTIMIZERS, RULES, Given, SideBySide, eighths, shortened

Gradients = tuple[dict[int, Tensor], dict[int, Tensor]]


def gradients(s: SideBySide, random: Random) -> Gradients:
    """Two for each parameter that the optimizer has: many in conflict, one b above the floor of 1/1000, one below."""
    a, b = {}, {}
    for n, i in enumerate(s.held):
        x, y = (eighths(s.twins[i].shape, random) for _ in range(2))
        a[i], b[i] = x, (y / 2 - x, y * 2.0**-5, y / 2 - x, -x * 2.0**-12)[(n + random.randrange(2)) % 4]
    return a, b


def plain(s: SideBySide, random: Random) -> None:
    """Backward and step; what `conflict` told before stays as it was."""
    for _ in range(4):
        s.zero_grad()
        snapshot = s.opt.conflict
        before = snapshot.steps.tolist()
        s.backward(*gradients(s, random))
        assert snapshot.steps.tolist() == before
        s.check()
        s.step()
        s.check()


def one_call(s: SideBySide, random: Random) -> None:
    s.zero_grad()
    for _ in range(3):
        s.backward_and_update(*gradients(s, random))
        s.check()


def scaler(s: SideBySide, random: Random) -> None:
    """Also with a clip of what is unscaled, and a general gradient that overflows: the scale falls."""
    plain(s, random)
    for way in ("clip", "overflow", "usual", "overflow in one call"):
        a, b = gradients(s, random)
        if "overflow" in way:
            b[1][2] = float("inf")
        if way == "overflow in one call":
            s.zero_grad()
            before = s.scaler.get_scale()
            s.backward_and_update(a, b)
            assert s.scaler.get_scale() == before / 2
        else:
            s.zero_grad()
            s.backward(a, b)
            s.check()
            if way == "clip":
                s.unscale()
                s.on_both(lambda params: torch.nn.utils.clip_grad_norm_(params, 1.0))
            s.step()
        s.check()


class Forwarder:
    """As Lightning's: of the optimizer's class, but with no attributes of an optimizer's; asks for them elsewhere."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self.__class__ = type("Fabric" + type(optimizer).__name__, (type(self), type(optimizer)), {})

    @property
    def optimizer(self) -> Any:
        return self._optimizer

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        return self._optimizer.step(closure)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)


def proxy(s: SideBySide, random: Random) -> None:
    """All through the proxy; then each call through the other, so that nothing may lie in one of them."""
    itself, other = s.opt, Forwarder(s.opt)
    s.opt = other
    for loop in (plain, accumulate, one_call):
        loop(s, random)
    for _ in range(2):
        for s.opt in (itself, other):
            s.backward(*gradients(s, random))
        s.step()
        s.check()
        s.opt = itself
        with s.opt.accumulate(), s.model.accumulate():
            s.backward(*gradients(s, random))
        s.opt = other
        with pytest.raises(RuntimeError):
            s.opt.step()
        s.backward(*gradients(s, random))
        s.opt = itself
        s.step()
        s.zero_grad()
        s.check()


def hooks(s: SideBySide, random: Random) -> None:
    """A gradient is halved in its leaf for each loss, one is clipped when all are there, steps are counted."""
    seen: list[Any] = []

    def halve(gradient: Tensor) -> Tensor:
        seen.append("leaf")
        return gradient / 2

    def clip(p: Tensor) -> None:
        assert all(q.grad is not None for q in s.params)
        seen.append("accumulated")
        p.grad.clamp_(-1, 1)

    s.params[0].register_hook(halve)
    s.params[1].register_post_accumulate_grad_hook(clip)
    s.opt.register_step_pre_hook(lambda *_: seen.append("before"))
    s.opt.register_step_post_hook(lambda *_: seen.append("after"))

    def halved(given: Given) -> Given:
        return {i: g / 2 if i == 0 else g for i, g in given.items()}

    for _ in range(3):
        a, b = gradients(s, random)
        s.zero_grad()
        with s.opt.accumulate(), s.model.accumulate():
            s.opt.backward(*s.losses(a, b))
            s.model.backward(s.by_twin(halved(a)), s.by_twin(halved(b)))
        assert seen == ["leaf"] * 2
        a, b = gradients(s, random)
        s.opt.backward(*s.losses(a, b))
        s.model.backward(s.by_twin(halved(a)), s.by_twin(halved(b)))
        s.twins[1].grad.clamp_(-1, 1)
        s.check()
        s.step()
        s.check()
        assert seen == ["leaf"] * 4 + ["accumulated", "before", "after"]
        seen.clear()


def accumulate(s: SideBySide, random: Random) -> None:
    """Three micro-batches, of which one does not reach all; the last call is outside, of either kind.

    What a block has added up before it fails, and what `zero_grad` drops, is not in the next sum.
    """

    def fail() -> None:
        with s.opt.accumulate(), s.model.accumulate():
            s.backward(*gradients(s, random))
            raise ArithmeticError

    for last in (s.backward, s.backward_and_update):
        with pytest.raises(ArithmeticError):
            fail()
        s.backward(*gradients(s, random))
        s.check()
        with s.opt.accumulate(), s.model.accumulate():
            s.backward(*gradients(s, random))
        s.zero_grad()
        with s.opt.accumulate(), s.model.accumulate():
            s.backward(*gradients(s, random))
            a, b = gradients(s, random)
            del a[0], b[1]
            s.backward(a, b)
            s.check()
        last(*gradients(s, random))
        s.check()
        s.step()
        s.check()


def edited(s: SideBySide, random: Random) -> None:
    """Masked, clipped, replaced, dropped, before the step and before another backward."""

    def mask(params: list[Tensor]) -> None:
        params[0].grad[0] = 0

    def replace(params: list[Tensor]) -> None:
        params[1].grad = params[1].grad / 2
        params[2].grad = None

    for edit in (mask, replace, lambda params: torch.nn.utils.clip_grad_norm_(params, 1.0)):
        s.zero_grad()
        s.backward(*gradients(s, random))
        s.on_both(edit)
        s.backward(*gradients(s, random))
        s.on_both(edit)
        s.step()
        s.check()
    s.plain_backward(gradients(s, random)[0])
    s.on_both(shortened)
    s.backward_and_update(*gradients(s, random))
    s.check()


def zeroed(s: SideBySide, random: Random) -> None:
    """A batch that is skipped leaves nothing behind, whoever zeroes its gradients."""
    for set_to_none in (True, False, True):
        s.backward(*gradients(s, random))
        s.on_both(lambda params, none=set_to_none: torch.nn.ParameterList(params).zero_grad(none))
        s.backward(*gradients(s, random))
        s.check()
        s.step()
        s.on_both(lambda params, none=set_to_none: torch.nn.ParameterList(params).zero_grad(none))
        s.check()


def surgery(s: SideBySide, random: Random) -> None:
    """A parameter becomes larger, the last is dropped, groups change places, a group is new; two steps each.

    A basis has a column for each element: there sizes stay.
    """
    fixed = s.rule_name == "Subspace"

    def replace(opt: Any, params: list[Tensor]) -> None:
        del opt.state[params[0]]
        opt.param_groups[0]["params"][0] = params[large]

    def assign(opt: Any, params: list[Tensor]) -> None:
        opt.param_groups = [{**group, "params": group["params"][::-1]} for group in opt.param_groups[::-1]]

    plain(s, random)
    large = s.new_parameter((2, 3) if fixed else (4, 3), random)
    s.on_groups(replace)
    s.model.forget(s.twins[0])
    plain(s, random)
    s.on_groups(assign)
    plain(s, random)
    one_call(s, random)
    if fixed:
        return
    new = s.new_parameter((2, 2), random)
    s.on_groups(lambda opt, params: opt.add_param_group({"params": [params[new]], "lr": 0.1}))
    s.on_groups(lambda opt, params: opt.param_groups[0]["params"].pop())
    plain(s, random)
    one_call(s, random)


def resumed(s: SideBySide, random: Random) -> None:
    """From a checkpoint; the last backward did not reach the first parameter."""
    plain(s, random)
    a, b = gradients(s, random)
    if s.rule_name != "Subspace":
        del a[0], b[0]
    s.backward(a, b)
    s.resume()
    s.check()
    plain(s, random)


KINDS: dict[str, Callable[[SideBySide, Random], None]] = {
    kind.__name__: kind
    for kind in (plain, one_call, scaler, proxy, hooks, accumulate, edited, zeroed, surgery, resumed)
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_kinds(optimizer: str, rule: str, kind: str) -> None:
    # every scope for each kind and for each rule; without a rule one group goes through one operator, two do not
    n = list(KINDS).index(kind) + list(RULES).index(rule) + list(OPTIMIZERS).index(optimizer)
    for one_group in (False, True) if rule == "None" else (n % 2 == 0,):
        s = SideBySide(optimizer, rule, SCOPES[n % 3], seed=1, scaled=kind == "scaler", one_group=one_group)
        s.set_floor(1e-3)
        KINDS[kind](s, Random(kind))
        assert sum(count.conflicts for count in s.model.conflict()) > 0


@pytest.mark.filterwarnings("ignore:.*scale:UserWarning")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_losses_scaled_by_hand(optimizer: str, rule: str) -> None:
    """A rule with a memory refuses them; with the others a is left alone where b is not finite."""
    s = SideBySide(optimizer, rule, "tensor", scaled=True)
    random = Random("by hand")
    for bad in (False, True, False):
        a, b = gradients(s, random)
        if bad:
            b[1][2] = float("inf")
        s.zero_grad()
        s.opt.backward(*(s.scaler.scale(loss) for loss in s.losses(a, b)))
        if rule in ("Bloop", "GradVac"):
            with pytest.raises(RuntimeError, match="scaler"):
                s.scaler.step(s.opt)
            return
        scaled = ({i: g * s.scale for i, g in given.items()} for given in (a, b))
        s.model.backward(*map(s.by_twin, scaled))
        s.check()
        s.step()
        s.check()


@pytest.mark.filterwarnings("ignore:.*backward:UserWarning")  # one steps that has projected nothing
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_refusal_changes_nothing(optimizer: str) -> None:
    """A basis with more columns than are reached: `.grad` and the sums stay, and the next call finds them."""
    s = SideBySide(optimizer, "Subspace", "tensor")
    random = Random("refusal")
    a, b = gradients(s, random)
    less = [{i: g for i, g in given.items() if i > 0} for given in (a, b)]
    s.plain_backward(less[0])
    for refused in (s.backward, s.backward_and_update, s.step_on_pair):
        refused(*less)
        s.check()
    with s.opt.accumulate(), s.model.accumulate():
        s.backward(*less)
    for refused in (s.backward, s.backward_and_update, s.step_on_pair):
        refused(*less)
        s.check()
        s.step()  # refused as well
        s.check()
    s.backward(a, b)
    s.check()
    s.step()
    s.check()
