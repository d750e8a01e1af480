"""Guards the gradients of two losses: as by two backwards, hooks and freed memory included, with one through the tower.

Every test compares with `loss.backward()` on a twin: the same model once more.
"""

import threading
import weakref
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import prograd_fast as pf
from prograd_fast.clip.packed import encode
from prograd_fast.clip.packed.chunks import BACKWARD, KEPT
from prograd_fast.ops.cotangent_batches import TakesCotangentBatches
from prograd_fast.ops.registry import SHORTCUTS
from prograd_fast.optim.one_backward import Gradients, gradients_of_both
from tests.tiny_clip import CLASS_NAMES, TOKENIZER, tiny_clip
from tests.tolerances import assert_close

IMAGES = nn.functional.normalize(
    torch.randn(7, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=-1
)
LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 1])
CLIP = tiny_clip()  # frozen, and so the same for all
TEACHER = pf.clip.ZeroShotTeacher(CLIP, TOKENIZER, CLASS_NAMES, "a photo of a {}.").logits(IMAGES)
CHUNKED = 20 * 32 * 8 * (2 * KEPT + BACKWARD)  # bytes for about one class at a time


class Plain(nn.Module):
    """No node takes two cotangents; the middle layer stands where the tower is elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.encoder, self.last = (nn.Linear(24, 24).double() for _ in range(3))

    def below(self) -> Tensor:
        return self.first(IMAGES[:5]).tanh()

    def encode(self, below: Tensor) -> Tensor:
        return self.encoder(below)

    def above(self, output: Tensor) -> Tensor:
        return self.last(output.tanh())

    def losses(self, above: Tensor) -> tuple[Tensor, Tensor]:
        return above.square().sum() + self.first.bias.square().sum(), above.sin().sum()


class Prompted(Plain):
    """The packed tower, the last layer a learned shift."""

    def __init__(self, max_memory: float | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        del self.first, self.last
        self.net = pf.clip.PromptedCLIP(CLIP, TOKENIZER, CLASS_NAMES, 4, max_memory=max_memory)
        self.encoder = self.net.encoder

    def below(self) -> Tensor:
        return self.net.prompt.ctx[None].clone()

    def encode(self, below: Tensor) -> Tensor:
        return self.encoder(below)

    def above(self, output: Tensor) -> Tensor:
        return nn.functional.normalize(output, dim=-1)

    def losses(self, above: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.net.logits(IMAGES, above.mean(0))
        return pf.DualLoss(temperature=2.0)(logits, TEACHER, LABELS)


class BothSides(Prompted):
    """A network makes the contexts (CoCoOp), a shift of the features (LASP); the context is in the task loss, too."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Linear(24, 32).double()
        self.shift = nn.Parameter(torch.zeros(24, dtype=torch.float64))

    def below(self) -> Tensor:
        return self.net.prompt.ctx + self.make(IMAGES[:2])[:, None]

    def above(self, output: Tensor) -> Tensor:
        return nn.functional.normalize(output + self.shift, dim=-1)

    def losses(self, above: Tensor) -> tuple[Tensor, Tensor]:
        task, general = super().losses(above)
        return task + self.net.prompt.ctx.square().sum(), general


class Deep(Prompted):
    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Parameter(torch.randn(1, 4, 32, dtype=torch.float64))

    def encode(self, below: Tensor) -> Tensor:
        return self.encoder(below, self.deep)


MODELS: dict[str, Callable[[], Plain]] = {
    "plain": Plain,
    "tower": Prompted,
    "both sides": BothSides,
    "deep prompts": Deep,
    "chunks": lambda: Prompted(CHUNKED),
}
TOWERS = [name for name in MODELS if name != "plain"]


def both_of(task: Tensor, general: Tensor | None, params: list[Tensor], **options: bool) -> tuple[Gradients, Gradients]:
    return gradients_of_both(task, general, params, **{"retain_graph": False, "create_graph": False} | options)


class Run:
    """One forward of a model, with its places for hooks and what they received."""

    def __init__(self, model: Plain, *hooks: str) -> None:
        self.model = model
        self.params = [p for p in model.parameters() if p.requires_grad]
        self.received: dict[str, list[tuple[Tensor, ...]]] = defaultdict(list)
        for hook in hooks:
            if hook in MODULE_HOOKS:
                MODULE_HOOKS[hook](self)
        self.below = model.below()
        self.output = model.encode(self.below)
        self.above = model.above(self.output)
        self.task, self.general = model.losses(self.above)
        for hook in hooks:
            if hook in GRAPH_HOOKS:
                GRAPH_HOOKS[hook](self)

    def note(self, name: str, *gradients: Tensor | None) -> None:
        self.received[name].append(tuple(g.clone() for g in gradients if g is not None))

    def noting(self, name: str, factor: float | None = None) -> Callable[[Tensor], Tensor | None]:
        def hook(gradient: Tensor) -> Tensor | None:
            self.note(name, gradient)
            return None if factor is None else gradient * factor

        return hook

    def both(self, **options: bool) -> tuple[Gradients, Gradients]:
        found = both_of(self.task, self.general, self.params, **options)
        self.assert_no_meeting()
        return found

    def assert_no_meeting(self) -> None:
        assert not any(getattr(node, "meeting", None) for node in nodes(self.task) | nodes(self.general))

    def two_backwards(self) -> tuple[Gradients, Gradients]:
        found = []
        for loss, retain in ((self.task, True), (self.general, False)):
            for p in self.params:
                p.grad = None
            loss.backward(retain_graph=retain)
            found.append(tuple(p.grad for p in self.params))
        return found[0], found[1]


def nodes(loss: Tensor) -> set[Any]:
    found, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [to for to, _ in node.next_functions]
    return found


def own_node(run: Run) -> Any:
    """The tower's node, or the layer's."""
    towers = [node for node in nodes(run.task) if issubclass(getattr(node, "_forward_cls", object), encode._Encode)]
    return towers[0] if towers else run.output.grad_fn


def tensor_hook(of: Callable[[Run], Tensor], name: str, factor: float | None) -> Callable[[Run], Any]:
    return lambda run: of(run).register_hook(run.noting(name, factor))


def in_place(run: Run) -> None:
    for name in ("output", "below"):

        def hook(gradient: Tensor, name: str = name) -> None:
            run.note(f"in place: {name}", gradient.mul_(0.1))

        getattr(run, name).register_hook(hook)


def node_prehook(run: Run) -> None:
    def hook(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        run.note("node pre-hook", *gradients)
        return tuple(None if g is None else 0.1 * g for g in gradients)

    own_node(run).register_prehook(hook)


def node_hook(run: Run) -> None:
    def hook(inputs: tuple[Tensor | None, ...], outputs: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        run.note("node hook", *inputs, *outputs)
        return tuple(None if g is None else 0.1 * g for g in inputs)

    own_node(run).register_hook(hook)


def multi_grad_hook(run: Run) -> None:
    tensors = [run.output, run.below]  # of leaves PyTorch has none under `torch.autograd.grad`
    torch.autograd.graph.register_multi_grad_hook(tensors, lambda gs: run.note("multi-grad hook", *gs))


def retained(run: Run) -> None:
    for tensor in (run.above, run.output, run.below):
        tensor.retain_grad()


def backward_hook(run: Run) -> None:
    def hook(module: nn.Module, inputs: Any, outputs: Any) -> Any:
        run.note("backward hook", *inputs, *outputs)
        return tuple(None if g is None else 0.1 * g for g in inputs)

    run.model.encoder.register_full_backward_hook(hook)


def backward_pre_hook(run: Run) -> None:
    def hook(module: nn.Module, outputs: Any) -> Any:
        run.note("backward pre-hook", *outputs)
        return tuple(0.1 * g for g in outputs)

    run.model.encoder.register_full_backward_pre_hook(hook)


MODULE_HOOKS = {"backward hook": backward_hook, "backward pre-hook": backward_pre_hook}
GRAPH_HOOKS = {
    "on the output": tensor_hook(lambda run: run.output, "output", 0.1),
    "above": tensor_hook(lambda run: run.above, "above", 0.1),
    "below": tensor_hook(lambda run: run.below, "below", 0.1),
    "on leaves": lambda run: [tensor_hook(lambda run, p=p: p, f"leaf {i}", 0.1)(run) for i, p in enumerate(run.params)],
    "loss": lambda run: (run.task.register_hook(run.noting("task")), run.general.register_hook(run.noting("general"))),
    "in place": in_place,
    "node pre-hook": node_prehook,
    "node hook": node_hook,
    "multi-grad hook": multi_grad_hook,
    "retain_grad": retained,
}
HOOKS = [*GRAPH_HOOKS, *MODULE_HOOKS]


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """How many cotangents each backward of the tower had; a chunk is a part of one."""
    found: list[int] = []
    original = encode._EncodeBackward.forward

    def forward(cotangents, *others):
        found.append(len(cotangents))
        return original(cotangents, *others)

    monkeypatch.setattr(encode._EncodeBackward, "forward", forward)
    return found


@pytest.fixture(params=["extension", "no extension"])
def extension(request, monkeypatch) -> bool:
    """With and without the C++ function that frees a graph."""
    if request.param == "no extension":
        monkeypatch.delitem(SHORTCUTS, "release_graph", raising=False)
    elif "release_graph" not in SHORTCUTS:
        pytest.skip("the extension is not built")
    return "release_graph" in SHORTCUTS


def assert_same(got: Gradients, want: Gradients) -> None:
    assert [g is None for g in got] == [w is None for w in want]
    for g, w in zip(got, want, strict=True):
        if g is not None:
            assert_close(g, w, "formula", torch.float64)


def are_close(got: Gradients, want: Gradients) -> bool:
    return len(got) == len(want) and all(torch.allclose(g, w) for g, w in zip(got, want, strict=True))


def assert_as_two_backwards(run: Run, twin: Run, **options: bool) -> None:
    """Gradients, and what every hook received: once for each loss, in either order."""
    wanted, got = twin.two_backwards(), run.both(**options)
    for g, w in zip(got, wanted, strict=True):
        assert_same(g, w)
    assert set(run.received) == set(twin.received)
    for name, want in twin.received.items():
        calls = run.received[name]
        assert len(calls) == len(want), name
        if not are_close(calls[0], want[0]):
            calls = calls[::-1]
        for one, other in zip(calls, want, strict=True):
            assert_same(one, other)
    for place in ("above", "output", "below"):
        if getattr(twin, place).retains_grad:
            assert_close(getattr(run, place).grad, getattr(twin, place).grad, "formula", torch.float64)


# ---- hooks


@pytest.mark.parametrize("hook", ["no hook", *HOOKS, "all together"])
@pytest.mark.parametrize("model", MODELS)
def test_gradients_and_hooks_are_those_of_two_backwards(model, hook, passes):
    hooks = HOOKS if hook == "all together" else [hook]
    twin, run = (Run(MODELS[model](), *hooks) for _ in range(2))
    assert_as_two_backwards(run, twin)
    assert bool(run.received) == (hook not in ("no hook", "retain_grad"))
    # a module's hook has one place for a gradient: two backwards, one after the other
    once = [] if model == "plain" else [1, 1] if {*hooks} & {*MODULE_HOOKS} else [2]
    assert passes == ([] if model == "plain" else [1, 1]) + once


def test_behind_the_tower_hooks_see_the_general_loss_first():
    run, twin = (Run(Prompted(), "on the output", "below") for _ in range(2))
    run.both(), twin.two_backwards()
    for place, in_order in (("output", [0, 1]), ("below", [1, 0])):
        for got, k in zip(run.received[place], in_order, strict=True):
            assert_same(got, twin.received[place][k])


# ---- which nodes are shared


def test_two_sets_of_classes(passes):
    """Two nodes that both losses reach: they meet in the first."""
    runs = [Run(Prompted()) for _ in range(2)]
    for run in runs:
        other = run.model.net.with_classes(["tulip", "rose"]).class_features(run.model.net.prompt.ctx)
        run.task, run.general = run.task + other.sum(), run.general + other.square().sin().sum()
    assert_as_two_backwards(*runs)
    assert sorted(passes[-3:]) == [1, 1, 2]


@pytest.mark.parametrize("reaches", ["task", "general"])
def test_a_second_set_of_classes_that_one_loss_reaches(reaches, passes):
    runs = [Run(Prompted()) for _ in range(2)]
    for run in runs:
        other = run.model.net.with_classes(["tulip", "rose"]).class_features(run.model.net.prompt.ctx)
        setattr(run, reaches, getattr(run, reaches) + other.sum())
    assert_as_two_backwards(*runs)
    assert sorted(passes[-2:]) == [1, 2]


@pytest.mark.parametrize("reaches", ["task", "general", "none"])
def test_a_loss_that_does_not_reach_the_tower(reaches, passes):
    runs = [Run(BothSides()) for _ in range(2)]
    for run in runs:
        for name in {"task", "general"} - {reaches}:
            setattr(run, name, run.model.shift.sum() * (2 if name == "task" else 3))
    assert_as_two_backwards(*runs)
    assert passes == ([] if reaches == "none" else [1, 1])


class Ends(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return None


@pytest.mark.parametrize("which", ["task", "general"])
def test_a_loss_whose_gradient_ends_above_the_tower(which, passes):
    """In the graph both reach the node, but a function in between gives one loss no gradient."""
    runs = [Run(Prompted()) for _ in range(2)]
    for run in runs:
        setattr(run, which, Ends.apply(run.above).sum())
    got, want = runs[0].both(), runs[1].two_backwards()
    for one, other in zip(got, want, strict=True):
        for g, w in zip(one, other, strict=True):
            assert (g is None) == (w is None)
            assert g is None or torch.equal(g, w)
    assert passes == [1, 1]


def test_the_same_loss_twice(passes):
    run, twin = Run(Prompted()), Run(Prompted())
    run.general, twin.general = run.task, twin.task
    assert_as_two_backwards(run, twin)
    assert passes == [1, 1, 2]


def test_a_general_loss_that_is_constant_in_the_parameters(passes):
    run = Run(Prompted())
    other = torch.ones((), dtype=torch.float64, requires_grad=True)
    wanted, _ = Run(Prompted()).two_backwards()
    a, b = both_of(run.task, other * 2, run.params)
    assert_same(a, wanted)
    assert b == (None,) * len(run.params)


def test_losses_that_are_leaves():
    p, q = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (1.0, 2.0))
    a, b = both_of(p, q, [p, q])
    assert (a[0], a[1], b[0], b[1]) == (1, None, None, 1)


@pytest.mark.parametrize("model", MODELS)
def test_one_loss(model, passes):
    run, twin = Run(MODELS[model](), *HOOKS), Run(MODELS[model](), *HOOKS)
    twin.task.backward()
    a, b = both_of(run.task, None, run.params)
    assert b is None
    assert_same(a, tuple(p.grad for p in twin.params))
    assert set(run.received) == set(twin.received)
    for name, want in twin.received.items():
        for one, other in zip(run.received[name], want, strict=True):
            assert_same(one, other)
    with pytest.raises(RuntimeError, match="second time"):
        run.task.backward()
    assert passes == ([] if model == "plain" else [1, 1])


def test_differentiable_gradients(passes):
    run = Run(Prompted())
    wanted = Run(Prompted()).two_backwards()
    for got, want in zip(run.both(create_graph=True), wanted, strict=True):
        assert_same(got, want)
        assert all(g.requires_grad for g in got)
    assert passes == [1, 1, 1, 1]
    run.task.backward()  # and the graph is kept
    plain = Run(Plain())
    a, _ = plain.both(create_graph=True)
    assert torch.autograd.grad(sum(g.square().sum() for g in a if g is not None), plain.params[:1])[0].any()


def test_an_infinite_general_loss_leaves_the_task_gradient_alone(passes):
    run = Run(Prompted())
    wanted, _ = Run(Prompted()).two_backwards()
    run.general = run.general * torch.inf
    a, b = run.both()
    assert passes[-1] == 2
    assert_same(a, wanted)
    assert not b[0].isfinite().any()


# ---- memory


class Box:
    """Stands for a tensor that a graph has saved: gone when it is freed."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Saved:
    """Counts what was saved while it is open, and is still there."""

    def __init__(self) -> None:
        self.boxes: list[weakref.ref[Box]] = []
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda box: box.tensor)

    def pack(self, tensor: Tensor) -> Box:
        box = Box(tensor)
        self.boxes.append(weakref.ref(box))
        return box

    @property
    def left(self) -> int:
        return sum(box() is not None for box in self.boxes)


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.square())
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        (square,) = ctx.saved_tensors
        return 3 * square * gradient


def shared(run: Run) -> None:
    pass


def disjoint(run: Run) -> None:
    run.general = run.model.losses(run.model.above(run.model.encode(run.model.below())))[1]


def more_of_the_task(run: Run) -> None:
    run.task = run.task + run.above.exp().cos().sum()


def more_of_the_general(run: Run) -> None:
    run.general = run.general + run.above.exp().cos().sum()


def custom(run: Run) -> None:
    run.task, run.general = run.task + Cube.apply(run.above).sum(), run.general + Cube.apply(run.output.sin()).sum()


def foreign(run: Run) -> None:
    """A part that leads to no parameter of the optimizer, which `autograd.grad` does not look at."""
    other = torch.ones(3, requires_grad=True)
    run.task = run.task + other.exp().cos().sum()


GRAPHS = [shared, disjoint, more_of_the_task, more_of_the_general, custom, foreign]


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("model", ["plain", "tower", "both sides", "chunks"])
def test_graphs_are_freed(model, graph, extension):
    saved = Saved()
    with saved.hooks:
        run = Run(MODELS[model]())
        graph(run)
    twin = Run(MODELS[model]())
    graph(twin)
    before, wanted = saved.left, twin.two_backwards()
    for _ in range(2):
        for got, want in zip(run.both(retain_graph=True), wanted, strict=True):
            assert_same(got, want)
        assert saved.left == before > 0
    for got, want in zip(run.both(), wanted, strict=True):
        assert_same(got, want)
    if extension:
        assert saved.left == 0
        for loss in (run.task, run.general):
            with pytest.raises(RuntimeError, match="second time"):
                loss.backward()
    elif graph is disjoint:
        assert saved.left == 0
    elif model == "plain":
        assert saved.left < before


@pytest.mark.parametrize("model", MODELS)
def test_a_plain_backward_after_a_kept_graph(model):
    run, twin = Run(MODELS[model]()), Run(MODELS[model]())
    run.both(retain_graph=True)
    for one, other in zip(run.two_backwards(), twin.two_backwards(), strict=True):
        assert_same(one, other)


# ---- checkpoints


class CheckpointFunction(torch.autograd.Function):
    """Of a library that has its own."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def reentrant(x: Tensor) -> Tensor:
    return checkpoint(torch.sin, x, use_reentrant=True)


CHECKPOINTS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch": reentrant,
    "nested": lambda x: checkpoint(lambda y: reentrant(reentrant(y).exp()).cos(), x, use_reentrant=False),
    "another library": CheckpointFunction.apply,
    "deep": lambda x: sum((reentrant(x) for _ in range(2)), start=x).exp().sin().cos(),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
@pytest.mark.parametrize("reaches", ["task", "general", "both", "task alone"])
@pytest.mark.parametrize("model", ["plain", "tower"])
def test_reentrant_checkpoints_are_refused_before_anything_runs(model, reaches, kind):
    run = Run(MODELS[model](), *HOOKS)
    for name in ("task", "general") if reaches == "both" else (reaches.split()[0],):
        setattr(run, name, getattr(run, name) + CHECKPOINTS[kind](run.above).sum())
    general = None if reaches == "task alone" else run.general
    which = "general" if reaches == "general" else "task"
    with pytest.raises(RuntimeError, match=f"{which} loss, found CheckpointFunctionBackward.*use_reentrant=False"):
        both_of(run.task, general, run.params)
    assert not run.received
    run.task.backward()  # nothing was freed


class Checkpointed(Prompted):
    def encode(self, below: Tensor) -> Tensor:
        return checkpoint(super().encode, below, use_reentrant=False)


class CheckpointedAround(BothSides):
    def below(self) -> Tensor:
        return checkpoint(super().below, use_reentrant=False)

    def above(self, output: Tensor) -> Tensor:
        return checkpoint(super().above, output, use_reentrant=False)


class CheckpointedPlain(Plain):
    def encode(self, below: Tensor) -> Tensor:
        return checkpoint(super().encode, below, use_reentrant=False)


@pytest.mark.parametrize("hook", ["no hook", "on the output", "below", "backward hook"])
@pytest.mark.parametrize("model", [CheckpointedPlain, Checkpointed, CheckpointedAround])
def test_other_checkpoints(model, hook):
    assert_as_two_backwards(Run(model(), hook), Run(model(), hook))


# ---- what happens around and inside


PLACES = ["above", "output", "below"]


@pytest.mark.parametrize("call", [0, 1])
@pytest.mark.parametrize("place", [*PLACES, "node"])
@pytest.mark.parametrize("model", ["plain", "tower"])
def test_an_error_in_a_hook_comes_out_as_itself(model, place, call):
    run, twin = Run(MODELS[model]()), Run(MODELS[model]())
    error, calls = ZeroDivisionError("mine"), []

    def hook(*gradients: Any) -> None:
        calls.append(gradients)
        if len(calls) == call + 1:
            raise error

    # a graph without the tower is freed on the way of the second backward, as by `loss.backward()`
    register = own_node(run).register_prehook if place == "node" else getattr(run, place).register_hook
    handle = register(hook)
    with pytest.raises(ZeroDivisionError) as caught:
        run.both(retain_graph=True)
    assert caught.value is error
    run.assert_no_meeting()
    handle.remove()
    assert_as_two_backwards(run, twin)


def test_an_error_in_the_tower_comes_out_as_itself(monkeypatch):
    run = Run(Prompted())
    with monkeypatch.context() as patch:
        patch.setattr(encode, "backward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run.both()
    run.assert_no_meeting()
    assert_as_two_backwards(run, Run(Prompted()))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("loss", ["task", "general"])
def test_both_gradients_of_another_model_inside_a_hook(loss, place, passes):
    inner, twin = Run(Prompted()), Run(Prompted())
    run, wanted = Run(Prompted()), Run(Prompted()).two_backwards()
    found = []
    getattr(run, place).register_hook(lambda g: found.append(inner.both(retain_graph=True)) and None)
    run.both() if loss == "general" else run.task.backward()
    assert len(found) == (2 if loss == "general" else 1)
    for got in found:
        for one, other in zip(got, wanted, strict=True):
            assert_same(one, other)
    assert_as_two_backwards(inner, twin)


@pytest.mark.parametrize("inner", ["both", "plain"])
@pytest.mark.parametrize("call", [0, 1])
@pytest.mark.parametrize("place", PLACES)
def test_another_backward_of_the_same_graph_inside_a_hook(place, call, inner):
    """Of three and more backwards any two may meet: each gets its own gradients."""
    run, wanted = Run(Prompted()), Run(Prompted()).two_backwards()
    found: list[Gradients] = []
    busy: list[int] = []

    def hook(gradient: Tensor) -> None:
        busy.append(0)
        if len(busy) == call + 1:
            losses = run.task, run.general
            if inner == "both":
                found.extend(both_of(*losses, run.params, retain_graph=True))
            else:
                found.extend(torch.autograd.grad(loss, run.params, retain_graph=True) for loss in losses)

    getattr(run, place).register_hook(hook)
    for got, want in zip([*run.both(), *found], [*wanted, *wanted], strict=True):
        assert_same(got, want)


def in_threads(*functions: Callable[[], Any]) -> list[Any]:
    results: list[Any] = [None] * len(functions)

    def call(i: int) -> None:
        try:
            results[i] = functions[i]()
        except BaseException as error:
            results[i] = error

    threads = [threading.Thread(target=call, args=(i,), daemon=True) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "hangs"
    return results


def test_two_models_in_two_threads(passes):
    wanted = Run(Prompted()).two_backwards()
    runs = [Run(Prompted()) for _ in range(2)]
    for _ in range(5):
        for result in in_threads(*(lambda run=run: run.both(retain_graph=True) for run in runs)):
            assert not isinstance(result, BaseException), result
            for got, want in zip(result, wanted, strict=True):
                assert_same(got, want)
    assert passes[2:] == [2] * 10


def anomaly(run: Run) -> Any:
    with torch.autograd.detect_anomaly(check_nan=True):
        return run.both()


def without_gradients(run: Run) -> Any:
    with torch.no_grad():
        return run.both()


def under_autocast(run: Run) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        return run.both()


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("around", [anomaly, without_gradients, under_autocast])
@pytest.mark.parametrize("model", MODELS)
def test_modes_around_the_backward(model, around):
    wanted = Run(MODELS[model]()).two_backwards()
    for got, want in zip(around(Run(MODELS[model]())), wanted, strict=True):
        assert_same(got, want)


@pytest.mark.parametrize("model", MODELS)
def test_saved_tensors_elsewhere(model, passes):
    with torch.autograd.graph.save_on_cpu():
        run = Run(MODELS[model](), *GRAPH_HOOKS)
    assert_as_two_backwards(run, Run(MODELS[model](), *GRAPH_HOOKS))
    assert passes[2:] == ([] if model == "plain" else [2])


def test_hooks_see_autocast_as_in_two_backwards():
    """And grad mode: the second backward runs inside the first."""
    run = Run(Prompted())
    seen = []
    for place in PLACES:
        state = lambda g: seen.append((torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))  # noqa: E731
        getattr(run, place).register_hook(state)
    with torch.autocast("cpu", torch.bfloat16):
        run.both()
    assert seen == [(True, False)] * 6


def test_a_forward_under_autocast(passes):
    model = pf.clip.PromptedCLIP(tiny_clip(dtype=torch.float32), TOKENIZER, CLASS_NAMES, 4)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.logits(IMAGES.float())
        task, general = pf.DualLoss()(logits, logits.detach().roll(1, 1), LABELS)
    params = [model.prompt.ctx]
    wanted = [torch.autograd.grad(loss, params, retain_graph=True)[0] for loss in (task, general)]
    a, b = both_of(task, general, params)
    assert passes == [1, 1, 2]
    for got, want in zip((a[0], b[0]), wanted, strict=True):
        assert_close(got, want, "autocast", torch.bfloat16)


# ---- a function of somebody else's


class Scale(TakesCotangentBatches):
    """x·y, with a second output, and inputs that need no gradient."""

    @staticmethod
    def forward(x: Tensor, y: Tensor, name: str) -> tuple[Tensor, Tensor]:
        return x * y, x.detach().clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def vjps(ctx: Any, cotangents: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.saved_tensors
        return cotangents * y, cotangents * x if ctx.needs_input_grad[1] else None, None


@pytest.fixture(params=[True, False], ids=["both inputs", "one input"])
def scaled(request) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(0)
    x, y = torch.randn(2, 3, dtype=torch.float64).unbind()
    x.requires_grad_()
    y.requires_grad_(request.param)
    return Scale.apply(x.exp(), y, "name")[0], [x, y] if request.param else [x]


def test_a_function_of_ones_own(scaled):
    product, params = scaled
    task, general = product.square().sum(), product.sin().sum()
    wanted = [torch.autograd.grad(loss, params, retain_graph=True) for loss in (task, general)]
    got = both_of(task, general, params)
    for one, other in zip(got, wanted, strict=True):
        assert_same(one, other)


def test_losses_that_come_to_the_nodes_in_another_order():
    """In the first node that the general loss comes to, the task loss has no gradient: it waits in the other one."""
    x, y = torch.randn(2, 3, dtype=torch.float64).requires_grad_().unbind()
    first = Scale.apply(x.exp(), y, "first")[0]
    second = Scale.apply(y.exp(), x, "second")[0]
    task, general = first.sin().sum() + Ends.apply(second).sum(), first.cos().sum() + second.square().sum()
    wanted = [torch.autograd.grad(loss, [x, y], retain_graph=True) for loss in (task, general)]
    for got, want in zip(both_of(task, general, [x, y]), wanted, strict=True):
        assert_same(got, want)


def test_deep_nesting_does_not_hang(scaled):
    """Many backwards inside of each other."""
    product, params = scaled
    task, general = product.square().sum(), product.sin().sum()
    wanted = [torch.autograd.grad(loss, params, retain_graph=True) for loss in (task, general)]
    depth: list[int] = []

    def hook(gradient: Tensor) -> None:
        if len(depth) < 40:  # from 60 on autograd starts a thread, and other tests could not fork any more
            depth.append(0)
            both_of(task, general, params, retain_graph=True)

    product.register_hook(hook)
    (got,) = in_threads(lambda: both_of(task, general, params))
    assert not isinstance(got, BaseException), got
    for one, other in zip(got, wanted, strict=True):
        assert_same(one, other)
