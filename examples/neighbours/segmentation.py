"""Open-vocabulary segmentation: prompts learn from patches of scenes, and name what other scenes are made of.

`python -m examples.neighbours.segmentation` takes about a minute on two CPU cores and downloads nothing. Scenes
are composed of emoji drawings, whose outlines give the true mask. Prompts are trained on the patches of scenes with 22
base classes. They are tested on other scenes with these, and on scenes with 22 new classes: each pixel gets the
likeliest name of the half. The image tower saw whole drawings alone: `patch_features` takes its pooling away. Pixels of
the background do not count.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_fill_holes
from torch import Tensor
from torch.nn import functional as F

import prograd_fast as pf
from examples.neighbours.counts import at_least
from prograd_fast.clip import PatchCache, patch_features
from prograd_fast.clip.emoji_lite import normalize
from prograd_fast.clip.regions import BACKGROUND
from prograd_fast.data import PictureSet, load
from prograd_fast.data.splits import Rows
from prograd_fast.methods import CoOp, GradientLearner, Learner, Method, ProGradCoOp, SubPT, Task, ZeroShot
from prograd_fast.training import make_plan, tune

CELL, CELLS = 64, 4  # pixels of a drawing, drawings a side
SIDE, PATCHES = CELL * CELLS, 14  # the tower sees a scene 1.75 times as large, in patches of 32 pixels
METHODS: tuple[Method, ...] = (ZeroShot(), CoOp(), SubPT(), ProGradCoOp(lr=0.1))  # rates of the demo
IoUs = tuple[float, float]  # mean over base classes and over new classes, in percent


class Scenes(NamedTuple):
    """Pictures, and the class of each pixel, `BACKGROUND` where there is none."""

    images: list[Image.Image]
    classes: NDArray[np.int64]  # (N, SIDE, SIDE)


def outline(drawing: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(64, 64), the pixels of a drawing on a plain ground, holes included."""
    differs = np.abs(drawing.astype(int) - drawing[0, 0].astype(int)).max(axis=-1) > 12
    filled: NDArray[np.bool_] = binary_fill_holes(differs)
    return filled


def compose(pictures: PictureSet, rows: Rows, seed: int) -> Scenes:
    """Scenes with each of these drawings once, in random cells; a quarter of the cells stays empty."""
    random = np.random.default_rng(seed)
    images, classes = [], []
    for part in np.array_split(random.permutation(rows), math.ceil(len(rows) / (CELLS * CELLS * 3 // 4))):
        canvas = np.full((SIDE, SIDE, 3), 255, np.uint8)
        truth = np.full((SIDE, SIDE), BACKGROUND)
        for cell, row in zip(random.permutation(CELLS * CELLS), part.tolist(), strict=False):
            with pictures.opened(row) as picture:
                drawing = np.asarray(picture.convert("RGB").resize((CELL, CELL)))
            top, left = CELL * (cell // CELLS), CELL * (cell % CELLS)
            there, mask = np.s_[top : top + CELL, left : left + CELL], outline(drawing)
            canvas[there][mask] = drawing[mask]
            truth[there][mask] = pictures.labels[row]
        images.append(Image.fromarray(canvas))
        classes.append(truth)
    return Scenes(images, np.stack(classes))


def patch_labels(scenes: Scenes, learned: Rows) -> Tensor:
    """(N, P): the learned class that has most of a patch, `BACKGROUND` where none has half of it."""
    which = torch.from_numpy((scenes.classes[:, None] == learned[:, None, None]).astype(np.float32))
    share, label = F.adaptive_avg_pool2d(which, PATCHES).flatten(2).max(1)
    return torch.where(share >= 0.5, label, BACKGROUND)


def encode(scenes: Scenes) -> Tensor:
    """(N, P, D), the features of the patches."""
    model, _, _ = pf.clip.load_emoji_lite()
    images = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in scenes.images])
    size = (32 * PATCHES, 32 * PATCHES)
    large = (normalize(F.interpolate(part / 255, size, mode="bilinear")) for part in images.split(8))
    return torch.cat([patch_features(model, part).flatten(1, 2) for part in large])


def learn(method: Method, class_names: list[str], cache: PatchCache, seed: int) -> Learner:
    """The method after training on the patches."""
    model, tokenizer, _ = pf.clip.load_emoji_lite()
    learner = method.start(Task(model, tokenizer, class_names, *cache.foreground(), seed))
    if isinstance(learner, GradientLearner):
        tune(learner)
    return learner


def pixels(patch_scores: Tensor) -> NDArray[np.int64]:
    """(N, SIDE, SIDE): the class of each pixel, from scores (N, P, C) of the patches, interpolated in between."""
    maps = patch_scores.unflatten(1, (PATCHES, PATCHES)).permute(0, 3, 1, 2)
    large = (F.interpolate(part[None], (SIDE, SIDE), mode="bilinear").argmax(1) for part in maps)
    return torch.cat([*large]).numpy()


def mean_iou(found: NDArray[np.int64], truth: NDArray[np.int64], classes: Rows) -> float:
    """Mean over the classes that are there of intersection over union, in percent, on pixels that are of some class."""
    there = truth != BACKGROUND
    found, truth = found[there], truth[there]
    seen = [c for c in classes if (truth == c).any()]
    return 100 * fmean(((found == c) & (truth == c)).sum() / ((found == c) | (truth == c)).sum() for c in seen)


class Draw(NamedTuple):
    """One draw of base classes: the test scenes of either half, and what each method found in them."""

    scenes: list[Scenes]
    found: dict[str, list[NDArray[np.int64]]]
    table: dict[str, IoUs]


def run(partition: int, pictures: PictureSet, test_drawings: int | None = None) -> Draw:
    """Train all methods on the patches of one draw, and test them."""
    plan = make_plan(pictures, shots=16, seed=partition, partition=partition)
    scenes = compose(pictures, plan.train.rows, seed=partition)
    cache = PatchCache(encode(scenes), patch_labels(scenes, plan.train.classes))
    halves = [plan.tests["base"], plan.tests["new"]]
    drawings = [np.random.default_rng(partition).permutation(half.rows)[:test_drawings] for half in halves]
    tests = [compose(pictures, rows, seed=100 + partition) for rows in drawings]
    features = [encode(test) for test in tests]
    found: dict[str, list[NDArray[np.int64]]] = {}
    table: dict[str, IoUs] = {}
    for method in METHODS:
        learner = learn(method, list(plan.train.class_names(pictures)), cache, partition)
        found[method.title], ious = [], []
        for half, test, patches in zip(halves, tests, features, strict=True):
            scores = learner.scores(half.class_names(pictures))
            classes = half.classes[pixels(torch.stack([scores(scene) for scene in patches]))]
            found[method.title].append(classes)
            ious.append(mean_iou(classes, test.classes, half.classes))
        table[method.title] = (ious[0], ious[1])
    return Draw(tests, found, table)


def mean_table(draws: Sequence[Draw]) -> dict[str, IoUs]:
    """Means over draws."""
    return {
        name: (fmean(draw.table[name][0] for draw in draws), fmean(draw.table[name][1] for draw in draws))
        for name in draws[0].table
    }


def sentences(table: Mapping[str, IoUs]) -> list[str]:
    """Three sentences about the table."""
    zero_shot, coop, subpt, prograd = (table[method.title] for method in METHODS)

    def moved(name: str, to: IoUs) -> str:
        signs = [f"{after - before:+.1f}" for before, after in zip(zero_shot, to, strict=True)]
        return f"{name} {signs[0]} points on base classes and {signs[1]} on new ones"

    best = max(table, key=lambda name: 2 / (1 / table[name][0] + 1 / table[name][1]))
    return [
        f"Without training the mean IoU is {zero_shot[0]:.1f} % on base classes and {zero_shot[1]:.1f} % on new ones.",
        f"Against that, {moved('CoOp has', coop)}, {moved('SubPT', subpt)}, {moved('ProGrad', prograd)}.",
        f"The highest harmonic mean of both is {best}'s.",
    ]


def draw_picture(path: Path, draw: Draw, table: Mapping[str, IoUs], n_classes: int) -> None:
    """Scenes of both halves with the true mask and what each method found; on the right mean IoU of both."""
    scenes = [(half, i) for half in range(2) for i in range(min(2, len(draw.scenes[half].images)))]
    figure = Figure(figsize=(13.5, 1.55 * len(scenes) + 0.4), dpi=120, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(2.4, 1))
    columns = ("scene", "truth", *table)
    for (half, i), axes in zip(scenes, left.subplots(len(scenes), len(columns), squeeze=False), strict=True):
        truth = draw.scenes[half].classes[i]
        for ax, column in zip(axes, columns, strict=True):
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            if (half, i) == scenes[0]:
                ax.set_title(column, fontsize=9)
            if column == "scene":
                ax.imshow(draw.scenes[half].images[i])
                ax.set_ylabel(("base classes", "new classes")[half], fontsize=9)
                continue
            of = truth if column == "truth" else draw.found[column][half][i]
            coloured = colormaps["turbo"](of * 17 % n_classes / n_classes)[..., :3]  # neighbours in number differ
            coloured[truth == BACKGROUND] = 1
            ax.imshow(coloured)
    axes = right.subplots()
    for (name, (base, new)), marker in zip(table.items(), "ospD", strict=True):
        axes.scatter(base, new, s=60, marker=marker, label=name)
    axes.set(xlabel="mean IoU on base classes, %", ylabel="mean IoU on new classes, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Segment scenes of drawings by prompts learned from their patches.")
    parser.add_argument("--draws", type=at_least(1), default=3, help="draws of base classes (default: 3)")
    parser.add_argument(
        "--test-drawings", type=at_least(1), help="drawings of each half in the test scenes (default: all)"
    )
    parser.add_argument("--out", type=Path, default=Path("segmentation.png"), help="the picture to write")
    options = parser.parse_args()
    pictures = load("emoji")
    draws = [run(partition, pictures, options.test_drawings) for partition in range(options.draws)]
    table = mean_table(draws)
    draw_picture(options.out, draws[0], table, len(pictures.class_names))
    print(*sentences(table), sep="\n")


if __name__ == "__main__":
    main()
