"""What the examples of this folder share: pictures, a small model, training with both losses, and the table."""

import argparse
import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

import prograd_fast as pf
from prograd_fast.clip import LoadedClip, load_model
from prograd_fast.data import PictureSet, load
from prograd_fast.training import Part, encode_pictures, make_plan

TEMPLATE = "a photo of a {}."
TINY = "tiny"
SMALL_VIT = {"image_size": 128, "patch_size": 16, "width": 64, "layers": 3, "heads": 4, "mlp_ratio": 4.0}
FITTED_TO = 600  # pictures
Accuracies = tuple[float, float]  # in percent, on the base and on the new classes


class Seen(NamedTuple):
    """Image features (B, D), unit rows, and logits (B, C) of a batch."""

    features: Tensor
    logits: Tensor


class Tuned(nn.Module):
    """A model with whatever a method trains, in evaluation mode: the parameters that require a gradient.

    Args:
        clip: The untouched model. A method changes a copy of its own.
        lr: The learning rate.
    """

    def __init__(self, clip: LoadedClip, lr: float) -> None:
        super().__init__()
        self.model: Any = copy.deepcopy(clip.model).eval().requires_grad_(False)
        self.tokenizer, self.lr = clip.tokenizer, lr

    def image_features(self, images: Tensor) -> Tensor:
        """(B, D), not normalised."""
        return self.model.encode_image(images)

    def class_features(self, names: Sequence[str]) -> Tensor:
        """(C, D), not normalised."""
        return self.model.encode_text(self.tokenizer([TEMPLATE.format(name) for name in names]))

    def penalty(self, student: Seen, teacher: Seen) -> Tensor | float:
        """A term of the method's own beside the cross-entropy."""
        return 0.0

    def epoch_ended(self, epoch: int, epochs: int) -> None:
        """Called after each epoch, counted from 1."""

    def see(self, images: Tensor, class_features: Tensor) -> Seen:
        """Features and logits of (B, 3, H, W) pictures."""
        x = F.normalize(self.image_features(images), dim=1)
        return Seen(x, self.model.logit_scale.exp() * x @ F.normalize(class_features, dim=1).T)


class Pictures(NamedTuple):
    """Pictures of a part of a plan as the model takes them, their labels, and the names of the classes."""

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]


def small_model(pictures: PictureSet) -> LoadedClip:
    """Emoji-lite's text tower beside a ViT with random weights, whose projection alone knows something.

    It is the linear map from the ViT's features to emoji-lite's with the least squared error on pictures of the pool.
    """
    clip = load_model("emoji-lite", device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = VisionTransformer(**SMALL_VIT, output_dim=SMALL_VIT["width"]).eval().requires_grad_(False)
    rows = (pictures.split == "pool").nonzero()[0][:FITTED_TO]
    images = pictures_of(clip, pictures, Part(pictures.labels[rows], rows)).images
    vit.proj = None
    with torch.no_grad():
        x, y = vit(images), encode_pictures(clip, pictures, rows).of(rows)
    vit.proj = nn.Parameter(torch.linalg.lstsq(x, y).solution, requires_grad=False)
    clip.model.visual = vit
    return replace(clip, name=TINY)


def pictures_of(clip: LoadedClip, pictures: PictureSet, part: Part) -> Pictures:
    """The pictures of a part."""
    images = []
    for row in part.rows.tolist():
        with pictures.opened(row) as picture:
            images.append(clip.preprocess(picture))
    return Pictures(torch.stack(images), part.labels(pictures), part.class_names(pictures))


def train(tuned: Tuned, untouched: Tuned, shots: Pictures, epochs: int, batch: int, project: bool) -> Tuned:
    """Train a method on pictures of the base classes, with or without the projection."""
    criterion, generator = pf.DualLoss(), torch.Generator().manual_seed(0)
    optimizer = pf.ProGradAdamW([p for p in tuned.parameters() if p.requires_grad], lr=tuned.lr)
    with torch.no_grad():
        known = untouched.see(shots.images, untouched.class_features(shots.names))
    for epoch in range(1, epochs + 1):
        for rows in torch.randperm(len(shots.labels), generator=generator).split(batch):
            student, teacher = (
                tuned.see(shots.images[rows], tuned.class_features(shots.names)),
                Seen(*(t[rows] for t in known)),
            )
            # the two lines of the projection: both losses, and a backward that takes both
            task, general = criterion(student.logits, teacher.logits, shots.labels[rows])
            optimizer.zero_grad()
            optimizer.backward(task + tuned.penalty(student, teacher), general if project else None)
            optimizer.step()
        tuned.epoch_ended(epoch, epochs)
    return tuned


@torch.no_grad()
def accuracy(tuned: Tuned, tested: Pictures) -> float:
    """Percent of pictures whose own name is the likeliest."""
    classes = tuned.class_features(tested.names)
    found = torch.cat([tuned.see(images, classes).logits.argmax(1) for images in tested.images.split(100)])
    return 100 * (found == tested.labels).double().mean().item()


def compare(method: Callable[[LoadedClip], Tuned], options: argparse.Namespace) -> dict[str, Accuracies]:
    """Accuracies by way, means over draws of the base classes and of their pictures."""
    pictures = load("emoji")
    tiny = options.model == TINY
    clip = small_model(pictures) if tiny else load_model(options.model, options.pretrained, "cpu")
    untouched, found = Tuned(clip, 0.0), dict[str, list[Accuracies]]()
    for draw in range(options.draws):
        plan = make_plan(pictures, shots=options.shots, seed=draw, partition=draw)
        parts = (plan.train, plan.tests["base"], plan.tests["new"])
        shots, base, new = (pictures_of(clip, pictures, part) for part in parts)
        for name, project in (("untouched", None), ("without projection", False), ("with projection", True)):
            tuned = untouched
            if project is not None:
                torch.manual_seed(draw)
                tuned = train(method(clip), untouched, shots, options.epochs, options.batch, project)
            found.setdefault(name, []).append((accuracy(tuned, base), accuracy(tuned, new)))
    return {name: (sum(b for b, _ in of) / len(of), sum(n for _, n in of) / len(of)) for name, of in found.items()}


def sentence(table: dict[str, Accuracies]) -> str:
    """The comparison in words, whatever it is."""
    (plain_base, plain_new), (kept_base, kept_new) = table["without projection"], table["with projection"]

    def change(plain: float, kept: float) -> str:
        return f"{abs(kept - plain):.1f} points {'higher' if kept > plain else 'lower'}"

    return (
        f"With the projection the accuracy on the new classes is {change(plain_new, kept_new)} than without, "
        f"and on the base classes it is {change(plain_base, kept_base)}."
    )


def main(title: str, method: Callable[[LoadedClip], Tuned], arguments: Sequence[str] | None = None) -> None:
    """The command of an example: train with and without the projection, and print the table."""
    parser = argparse.ArgumentParser(description=f"{title} with and without the projection.")
    parser.add_argument("--model", default=TINY, help="an open_clip ViT, such as ViT-B-16 (default: a small one)")
    parser.add_argument("--pretrained", help="its weights, such as openai")
    parser.add_argument("--shots", type=int, default=4, help="pictures of each class (default: 4)")
    parser.add_argument("--epochs", type=int, default=10, help="passes over them (default: 10)")
    parser.add_argument("--batch", type=int, default=32, help="pictures in a step (default: 32)")
    parser.add_argument("--draws", type=int, default=1, help="draws of classes and pictures (default: 1)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1 if options.model == TINY else torch.get_num_threads())  # it has no work for more
    table = compare(method, options)
    print(f"{title}, accuracy in %".ljust(36) + f"{'base':>8}{'new':>8}{'harmonic mean':>16}")
    for name, (base, new) in table.items():
        print(f"{name:36}{base:8.1f}{new:8.1f}{2 * base * new / max(base + new, 1e-9):16.1f}")
    print(sentence(table))
    if options.model == TINY:
        print(
            "The blocks of this model have random weights, so the figures mean little: take --model ViT-B-16 "
            "--pretrained openai for a real one."
        )
