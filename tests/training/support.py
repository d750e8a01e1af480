"""Shared by the tests of training: tiny learners, runs that vanish, bars that show nothing, a full disk."""

import errno
import math
from contextlib import suppress
from pathlib import Path

import torch
from torch.nn import functional as F

from prograd_fast.methods import ProGradCoOp, PromptTuningLearner, Task
from prograd_fast.training import encode_pictures, make_plan, train_method, tune
from prograd_fast.training.checkpoint import Checkpoints
from tests.tiny_clip import CLASS_NAMES, TOKENIZER, tiny_clip

RUN = {"method": "prograd", "seed": 3, "class_names": ["a", "b"]}
STATE = {
    "optimizer": {
        "state": {0: {"momentum_buffer": torch.randn(3, 2), "step": torch.tensor(4.0)}},
        "param_groups": [{}],
    },
    "betas": (0.9, 0.99),
    "list": [1, 2.5, None, True, "text", math.inf],
    "empty": torch.empty(0, 4),
    "half": torch.ones(2, dtype=torch.bfloat16),
    "random": torch.get_rng_state(),
    "view": torch.arange(10)[::2],
    "transposed": torch.randn(3, 2).T,
}
# Two warm-up epochs, batches of 7 of 30 pictures (the last has 2), clipping that acts: all that has a state.
MINI = ProGradCoOp(lr=0.1, epochs=6, batch_size=7, warmup_epochs=2, clip_grad_norm=0.1, weight_decay=1e-3)
STEPS = 6 * 5


class NoBar:
    """A progress bar that shows nothing."""

    def __call__(self) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""


def no_bars(label: str, total: int) -> NoBar:
    """Stands for what opens progress bars."""
    return NoBar()


def make_learner(method=None, dtype=torch.float32, seed=0) -> PromptTuningLearner:
    """Six pictures of each of five classes, noisy copies of one random direction per class."""
    generator = torch.Generator().manual_seed(0)
    width = 32 if method is not None and method.before_projection else 24
    centres = torch.randn(len(CLASS_NAMES), width, generator=generator, dtype=dtype)
    features = centres.repeat_interleave(6, 0) + 0.3 * torch.randn(30, width, generator=generator, dtype=dtype)
    labels = torch.arange(len(CLASS_NAMES)).repeat_interleave(6)
    task = Task(tiny_clip(dtype=dtype), TOKENIZER, CLASS_NAMES, F.normalize(features, dim=-1), labels, seed)
    return (method or MINI).start(task)


def learner_of(method, clip, pictures) -> PromptTuningLearner:
    """A learner of two pictures of each class."""
    plan = make_plan(pictures, shots=2, seed=0, partition=None)
    features = encode_pictures(clip, pictures, plan.rows)
    names, labels = plan.train.class_names(pictures), plan.train.labels(pictures)
    return method.start(Task(clip.model, clip.tokenizer, names, features.of(plan.train.rows), labels))


def train_once(clip, shapes, method=None):
    """Record and learner of a short run on half of the classes."""
    plan = make_plan(shapes, shots=2, seed=3, partition=0)
    return train_method(method or ProGradCoOp(epochs=4), clip, shapes, plan, no_bars)


def same(one, other) -> bool:
    """Whether two trees of a checkpoint are equal, in types, dtypes and strides too."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.stride() == other.clone().stride() and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def probability_matrix(found) -> torch.Tensor:
    """(n, C) probabilities of predictions that have all classes, in the order of `class_names`."""
    matrix = torch.empty(found.top.shape)
    return matrix.scatter_(1, torch.from_numpy(found.top), torch.from_numpy(found.probabilities))


class Killed(Exception):  # noqa: N818  no error
    """Stands for what ends a process at any moment."""


def interrupted(learner, path: Path, after: int, **options):
    """Train until so many steps are done in this "process", then vanish."""
    checkpoints = Checkpoints(path, RUN, every=0.0)
    taken = -len((checkpoints.load() or {"measured": ()})["measured"])  # the bar is moved on for these first

    def on_step() -> None:
        nonlocal taken
        taken += 1
        if taken == after:
            raise Killed

    return tune(learner, on_step, checkpoints=checkpoints, **options)


def outcome(learner, history):
    """All numbers of a training."""
    return learner.module.state_dict(), vars(history)


def accuracies(results) -> list:
    """Method, shots, seed and accuracies of each run of a grid."""
    return [(run["method"], run["shots"], run["seed"], run["accuracy"]) for run in results["runs"]]


def disk_full(*args: object, **options: object) -> None:
    """Stands for whatever writes to a disk that is full."""
    raise OSError(errno.ENOSPC, "No space left on device")


def fill(disk: Path) -> None:
    """Leave nothing."""
    with (disk / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
