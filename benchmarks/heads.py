"""Whole runs of the cached heads: 16 pictures of each of 100 classes, at ViT-B/16's sizes.

`python -m benchmarks.heads` prints a table. Features are made up: of each class a direction, and pictures and texts
around it, 512 wide, or for ProLIP 768 wide before the projection. A run is all that follows the look at the pictures:
it starts the method, searches on validation pictures (4 of each class), trains, and scores 2,500 test pictures.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import load, machine
from prograd_fast.methods import METHODS, GradientLearner, Task
from prograd_fast.methods.cached_head import HeadMethod, Texts
from prograd_fast.training.evaluate import rank
from prograd_fast.training.loop import tune

NOISE = 0.04  # of each number of a unit row of 512: cosines of 0.55 within a class, and many wrong answers
SHARED = 0.7  # share of what all pictures have in common: cosines of 0.5 between classes, as CLIP has them


@dataclass(frozen=True)
class Sizes:
    """Classes, pictures and widths."""

    classes: int = 100
    shots: int = 16
    validation: int = 4
    test: int = 25
    width: int = 512
    before_projection: int = 768


class Took(NamedTuple):
    """Seconds of the wall and of all cores, training steps, and the share of test pictures that were right."""

    wall: float
    processor: float
    steps: int
    right: float


def run(method: HeadMethod, sizes: Sizes) -> Took:
    """One run of a method."""
    g = torch.Generator().manual_seed(0)
    projection = torch.randn(sizes.before_projection, sizes.width, generator=g) / sizes.before_projection**0.5
    width = sizes.before_projection if method.before_projection else sizes.width
    centres = torch.randn(sizes.classes, width, generator=g) + SHARED / (1 - SHARED) * torch.randn(width, generator=g)
    centres = F.normalize(centres, dim=1)

    def pictures(per_class: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(sizes.classes).repeat_interleave(per_class)
        return F.normalize(centres[labels] + NOISE * torch.randn(len(labels), width, generator=g), dim=1), labels

    names = [str(i) for i in range(sizes.classes)]
    seen = centres @ projection if method.before_projection else centres
    texts = Texts(names, F.normalize(seen, dim=1)[None] + NOISE * torch.randn(1, *seen.shape, generator=g), 100.0)
    (x, labels), validation, (tested, right) = map(pictures, (sizes.shots, sizes.validation, sizes.test))
    model: Any = SimpleNamespace(visual=SimpleNamespace(proj=torch.nn.Parameter(projection)))
    task = Task(model, lambda words: torch.empty(0), names, x, labels, validation=validation)
    wall, processor, steps = time.perf_counter(), time.process_time(), 0
    learner = method.learner(task, texts)
    if isinstance(learner, GradientLearner):
        steps = len(tune(learner).task_loss)
    top = rank(learner.scores(names), tested).top[:, 0]
    took = time.perf_counter() - wall, time.process_time() - processor
    return Took(*took, steps, float((torch.from_numpy(top) == right).double().mean()))


def heads(names: Sequence[str] = ()) -> list[HeadMethod]:
    """Every cached head with its defaults, or those of these names."""
    found = [method() for method in METHODS if issubclass(method, HeadMethod)]
    return [method for method in found if not names or method.name in names]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Time whole runs of the cached heads.")
    parser.add_argument("methods", nargs="*", help="names of methods (default: all cached heads)")
    parser.add_argument("--lambda", type=float, dest="lambda_", help="with the projection at this λ (default: without)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    facts = machine()
    print(f"{facts['cpu']}, {facts['cores']} cores, {options.threads} threads, torch {facts['torch']}, load {load()}")
    print(f"{'method':16}{'steps':>7}{'seconds':>9}{'of cores':>10}{'right':>7}")
    for method in heads(options.methods):
        if options.lambda_ is not None and hasattr(method, "lambda_"):
            method = type(method)(lambda_=options.lambda_)
        took = run(method, Sizes())
        print(f"{method.name:16}{took.steps:7}{took.wall:9.2f}{took.processor:10.2f}{took.right:7.1%}", flush=True)


if __name__ == "__main__":
    main()
