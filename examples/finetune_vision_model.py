"""Train an image tower's last layers with and without the projection, and ask what it still knows of other classes.

`python examples/finetune_vision_model.py` takes about a minute on two CPU cores and downloads nothing: the model is
emoji-lite, the pictures are the embedded emojis. The image tower's last block and all behind it are trained on 16
pictures of each of 22 classes, the base classes. The teacher is the same tower as it was before: its logits of the
training pictures are computed once. Then pictures of the base classes and of 22 others, which were not trained, are
classified by their names. All layers before the last block are frozen, so each picture goes through them once.
"""

import argparse
import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prograd_fast as pf
from prograd_fast.clip.emoji_lite import ImageTower, averages
from prograd_fast.data import PictureSet, load
from prograd_fast.training.protocol import Part, make_plan

BATCH = 32
Accuracies = tuple[float, float]  # in percent, on the base and on the new classes


class Pictures(NamedTuple):
    """Pictures behind the frozen layers, their labels, and the zero-shot classifier of their classes."""

    activations: list[Tensor]  # the maps of the frozen layers which the head reads; the last block takes the last one
    labels: Tensor
    classifier: pf.clip.ZeroShotTeacher


class LastLayers(nn.Module):
    """A copy of the trained part of emoji-lite's image tower, in evaluation mode: batch statistics stay as they are."""

    def __init__(self, tower: ImageTower) -> None:
        super().__init__()
        trunk = tower.trunk
        self.block, self.conv_head, self.bn2, self.head = copy.deepcopy(
            (trunk.blocks[-1], trunk.conv_head, trunk.bn2, tower.head)
        )
        self.requires_grad_(True).eval()

    def forward(self, activations: list[Tensor]) -> Tensor:
        """(B, D) unit rows."""
        x = self.block(activations[-1])
        read = averages([*activations, x, self.bn2(self.conv_head(x))], 1, 1)[:, 0, 0]
        return F.normalize(self.head(read), dim=-1)


@torch.no_grad()
def first_layers(tower: ImageTower, images: Tensor) -> list[Tensor]:
    """What the frozen layers make of (B, 3, H, W) images."""
    return tower.maps(images)[:-2]  # without those of the last block and of the layers behind it


def prepare(part: Part, pictures: PictureSet) -> Pictures:
    """One part of a plan, ready for training or test."""
    model, tokenizer, preprocess = pf.clip.load_emoji_lite()
    images = []
    for row in part.rows.tolist():
        with pictures.opened(row) as picture:
            images.append(preprocess(picture))
    classifier = pf.clip.ZeroShotTeacher(model, tokenizer, part.class_names(pictures), "a photo of a {}.")
    return Pictures(first_layers(model.visual, torch.stack(images)), part.labels(pictures), classifier)


def fine_tuned(start: LastLayers, shots: Pictures, epochs: int, project: bool) -> LastLayers:
    """A copy that was trained on the base classes."""
    tuned, criterion = copy.deepcopy(start), pf.DualLoss()
    # Adam moves each weight by about lr, and the head adds up 2896 of them: 1e-4 would be another head after one step
    optimizer = pf.ProGradAdamW(tuned.parameters(), lr=3e-6, weight_decay=0)
    with torch.no_grad():
        teacher = shots.classifier.logits(start(shots.activations))
    g = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(shots.labels), generator=g).split(BATCH):
            features = tuned([map[rows] for map in shots.activations])
            logits = shots.classifier.logit_scale * features @ shots.classifier.class_features.T
            task, general = criterion(logits, teacher[rows], shots.labels[rows])
            optimizer.zero_grad()
            optimizer.backward(task, general if project else None)
            optimizer.step()
    return tuned


@torch.no_grad()
def accuracy(layers: LastLayers, pictures: Pictures) -> float:
    """Percent of pictures whose own name is the likeliest."""
    found = pictures.classifier.logits(layers(pictures.activations)).argmax(1)
    return 100 * (found == pictures.labels).double().mean().item()


def compare(draws: int, epochs: int, on_draw: Callable[[int], object] = print) -> dict[str, Accuracies]:
    """Accuracies by model, means over draws of the base classes and of their pictures."""
    pictures = load("emoji")
    start = LastLayers(pf.clip.load_emoji_lite()[0].visual)
    found: dict[str, list[Accuracies]] = {}
    for draw in range(draws):
        on_draw(draw)
        plan = make_plan(pictures, shots=16, seed=draw, partition=draw)
        shots, base, new = (prepare(part, pictures) for part in (plan.train, plan.tests["base"], plan.tests["new"]))
        for name, layers in {
            "before fine-tuning": start,
            "fine-tuned": fine_tuned(start, shots, epochs, project=False),
            "fine-tuned, projected": fine_tuned(start, shots, epochs, project=True),
        }.items():
            found.setdefault(name, []).append((accuracy(layers, base), accuracy(layers, new)))
    return {name: (sum(b for b, _ in of) / draws, sum(n for _, n in of) / draws) for name, of in found.items()}


def sentence(table: dict[str, Accuracies]) -> str:
    """The comparison in words, whatever it is."""
    (plain_base, plain_new), (kept_base, kept_new) = table["fine-tuned"], table["fine-tuned, projected"]

    def change(plain: float, kept: float) -> str:
        return f"{abs(kept - plain):.1f} points {'higher' if kept > plain else 'lower'}"

    return (
        f"With the projection the accuracy on the new classes is {change(plain_new, kept_new)} than without, "
        f"and on the base classes it is {change(plain_base, kept_base)}."
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Fine-tune an image tower with and without the projection.")
    parser.add_argument("--draws", type=int, default=3, help="draws of classes and pictures (default: 3)")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of each training (default: 5)")
    options = parser.parse_args()
    torch.set_num_threads(1)  # so small layers have no work for more: they would wait for each other
    table = compare(
        options.draws, options.epochs, lambda draw: print(f"draw {draw + 1} of {options.draws}", flush=True)
    )
    print(f"{'accuracy in %':24}{'base':>8}{'new':>8}{'harmonic mean':>16}")
    for name, (base, new) in table.items():
        print(f"{name:24}{base:8.1f}{new:8.1f}{2 * base * new / (base + new):16.1f}")
    print(sentence(table))


if __name__ == "__main__":
    main()
