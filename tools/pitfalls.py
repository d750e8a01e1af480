"""Measure common mistakes on emoji: `python -m tools.pitfalls` writes the first table of docs/what-can-go-wrong.md.

Each mistake is made on purpose, and everything else stays as it is. Figures are top-1 accuracies in % on test pictures
of the embedded model, unless their row says otherwise. It takes some minutes of one core.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prograd_fast.clip import LoadedClip, ZeroShotTeacher
from prograd_fast.data import EMOJI_TASK_STYLES, PictureSet, load
from prograd_fast.methods import CoOp, GradientMethod, LinearProbe, Method, ProGradCoOp, Task, ZeroShot
from prograd_fast.training import (
    Evaluation,
    Features,
    Part,
    Plan,
    TrainOptions,
    accuracy_path,
    encode_pictures,
    load_model,
    make_plan,
    run_method,
)
from prograd_fast.training.evaluate import evaluate_parts
from tools.blocks import table, write_blocks

PAGE = Path(__file__).parents[1] / "docs" / "what-can-go-wrong.md"
COMMAND = "python -m tools.pitfalls"
CLIP_MEAN, CLIP_SD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
Row = list[str]


def zero_shot(clip: LoadedClip, features: Features, part: Part, *templates: str) -> Evaluation:
    """The untouched model on a part, whose pictures are all that `features` need to have."""
    task = Task.without_pictures(clip.model, clip.tokenizer, part.class_names(features.pictures))
    learner = (ZeroShot(templates) if templates else ZeroShot()).start(task)
    return evaluate_parts(learner, features, {"all": part})["all"]


def shown(*tests: Evaluation) -> Row:
    """Accuracies in %."""
    return [f"{100 * test.accuracy:.1f}" for test in tests]


def changed(clip: LoadedClip, change: Callable[[Any], None]) -> LoadedClip:
    """The model with a change of its own."""
    model = copy.deepcopy(clip.model)
    change(model)
    return replace(clip, model=model)


def swap_activation(model: Any) -> None:
    """GELU for QuickGELU in the text tower, or QuickGELU for GELU."""
    from open_clip.transformer import QuickGELU

    for block in model.transformer.resblocks:
        block.mlp.gelu = QuickGELU() if isinstance(block.mlp.gelu, torch.nn.GELU) else torch.nn.GELU()


def of_the_model(clip: LoadedClip, features: Features, part: Part) -> Iterator[Row]:
    """Activation, templates, class order, logit scale: the image features stay."""
    right = zero_shot(clip, features, part)
    yield ["the other GELU in the text tower", *shown(right, zero_shot(changed(clip, swap_activation), features, part))]
    for template in ("a photo of a {}.", "{}", "itap of a {}."):
        wrong = zero_shot(clip, features, part, template)
        yield [f'zero-shot with "{template}" for "a picture of a {{}}."', *shown(right, wrong)]
    names = features.pictures.class_names
    order = np.random.RandomState(0).permutation(len(names))
    mixed = replace(features, pictures=replace(features.pictures, class_names=tuple(names[i] for i in order)))
    yield ["class names in another order than the labels", *shown(right, zero_shot(clip, mixed, part))]
    scale = float(clip.model.logit_scale.exp())
    loud = zero_shot(changed(clip, lambda model: model.logit_scale.data.fill_(math.log(100))), features, part)
    yield [f"logit scale 100 for {scale:.0f}: accuracy", *shown(right, loud)]
    errors = [f"{100 * test.ece():.1f}" for test in (right, loud)]
    yield [f"logit scale 100 for {scale:.0f}: calibration error in points", *errors]


def of_the_pictures(clip: LoadedClip, features: Features, part: Part) -> Iterator[Row]:
    """Preprocessing and train mode: the image tower looks again."""
    plain, right = clip.preprocess, zero_shot(clip, features, part)
    mean, sd = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_SD))

    def again(other: LoadedClip) -> Row:
        return shown(right, zero_shot(other, encode_pictures(other, features.pictures, part.rows), part))

    mistakes: dict[str, Callable[[Any], Tensor]] = {
        "blue for red": lambda picture: plain(picture).flip(0),
        "CLIP's mean and deviation for the model's": lambda picture: ((plain(picture) + 1) / 2 - mean) / sd,
        "pixels from 0 to 1, not normalised": lambda picture: (plain(picture) + 1) / 2,
        "pictures upside down (EXIF left out)": lambda picture: plain(picture.rotate(180)),
    }
    for name, preprocess in mistakes.items():
        yield [name, *again(replace(clip, preprocess=preprocess))]
    training = changed(clip, lambda model: model.visual.train())
    yield ["image tower in train mode (batch norm, dropout)", *again(training)]


def of_ties(clip: LoadedClip, features: Features, part: Part) -> Iterator[Row]:
    """Scores in 16 bits: equal ones, and who wins them."""
    labels, x = part.labels(features.pictures), features.of(part.rows)
    teacher = ZeroShotTeacher(clip.model, clip.tokenizer, features.pictures.class_names, "a picture of a {}.")
    exact = teacher.logits(x)
    for dtype, name in ((torch.float16, "fp16"), (torch.bfloat16, "bf16")):
        scores = exact.to(dtype)
        best = scores == scores.max(1, keepdim=True).values
        first = (scores.float().argmax(1) == labels).double().mean().item()
        lucky = best[torch.arange(len(labels)), labels].double().mean().item()
        right = (exact.argmax(1) == labels).double().mean().item()
        tied = (best.sum(1) > 1).double().mean().item()
        yield [
            f"scores in {name}, the first of equal ones wins ({100 * tied:.1f} % of the pictures are tied)",
            f"{100 * right:.1f}",
            f"{100 * first:.1f}",
        ]
        yield [f"scores in {name}, the label wins a tie", f"{100 * right:.1f}", f"{100 * lucky:.1f}"]


def of_the_split(clip: LoadedClip, features: Features, seeds: int) -> Iterator[Row]:
    """A split by picture, where several pictures show one thing."""
    pictures = features.pictures
    ours = np.isin(pictures.style, EMOJI_TASK_STYLES)
    split = np.where(
        ours, np.random.RandomState(0).permutation(pictures.split[ours])[np.cumsum(ours) - 1], pictures.split
    )
    leaky = replace(pictures, split=split)
    found = []
    for one in (pictures, leaky):
        plans = [make_plan(one, 16, seed, None) for seed in range(seeds)]
        tested = [replace(plan, tests={"all": plan.tests["all"]}) for plan in plans]
        seen = replace(features, pictures=one)
        found.append(fmean(100 * run_method(LinearProbe(), clip, seen, plan).accuracy["all"] for plan in tested))
    yield ["split by picture, though three drawings show one emoji: linear probe", *(f"{value:.1f}" for value in found)]


def of_selection(clip: LoadedClip, features: Features, plans: Sequence[Plan], method: GradientMethod) -> Iterator[Row]:
    """The epoch with the best test accuracy, for the last one."""
    steps = sorted({round(i * method.epochs / 10) for i in range(11)})
    last, chosen = [], []
    for plan in plans:
        path = accuracy_path(method, clip, features, plan, steps)
        last.append(100 * path[steps[-1]]["base"])
        chosen.append(100 * max(accuracies["base"] for accuracies in path.values()))
    yield [
        f"the best of {len(steps)} epochs by test pictures: {method.title} on base classes",
        f"{fmean(last):.1f}",
        f"{fmean(chosen):.1f}",
    ]


def of_precision(clip: LoadedClip, features: Features, plans: Sequence[Plan], method: Method) -> Iterator[Row]:
    """Training in 16 bits."""
    found = []
    for precision in ("fp32", "bf16"):
        done = [run_method(method, clip, features, plan, options=TrainOptions(precision)).accuracy for plan in plans]
        found.append(" / ".join(f"{100 * fmean(one[part] for one in done):.1f}" for part in ("base", "new")))
    yield [f"training in bf16 for fp32: {method.title}, base / new", *found]


def look(clip: LoadedClip, pictures: PictureSet) -> Features:
    """The features of all pictures in the task's styles."""
    return encode_pictures(clip, pictures, np.flatnonzero(np.isin(pictures.style, EMOJI_TASK_STYLES)))


def effects(clip: LoadedClip, features: Features, partitions: int, seeds: int, epochs: int) -> str:
    """The table of all mistakes that are made on purpose.

    Args:
        clip: The model.
        features: Of the emoji set, see `look`.
        partitions: Of base and new classes.
        seeds: Draws of the shots.
        epochs: Of each training.
    """
    pictures = features.pictures
    part = make_plan(pictures, 16, 0, None).tests["all"]
    halves = [make_plan(pictures, 16, seed, half) for half in range(partitions) for seed in range(seeds)]
    narrow = [replace(one, tests={part: one.tests[part] for part in ("base", "new")}) for one in halves]
    coop, prograd = CoOp(epochs=epochs), ProGradCoOp(epochs=epochs)
    return table(
        ["the mistake", "as it should be", "with it"],
        [
            *of_the_model(clip, features, part),
            *of_the_pictures(clip, features, part),
            *of_ties(clip, features, part),
            *of_the_split(clip, features, seeds),
            *of_selection(clip, features, narrow, coop),
            *of_selection(clip, features, narrow, prograd),
            *of_precision(clip, features, narrow, prograd),
        ],
    )


def main() -> None:
    """The command."""
    torch.set_num_threads(1)
    clip = load_model("emoji-lite", device="cpu")
    features = look(clip, load("emoji"))
    write_blocks(PAGE, {"effects": effects(clip, features, partitions=3, seeds=2, epochs=100)}, COMMAND)


if __name__ == "__main__":
    main()
