"""The recipe on scenes of drawings: masks, labels of patches, IoU, and the whole with tiny settings."""

import numpy as np
import pytest
import torch
from PIL import Image

from examples.neighbours import segmentation as example
from prograd_fast.clip.regions import BACKGROUND
from prograd_fast.data import load
from prograd_fast.training import make_plan


def test_an_outline_has_its_holes_and_not_the_ground() -> None:
    drawing = np.full((64, 64, 3), 255, np.uint8)
    drawing[10:30, 20:50] = 0
    drawing[15:20, 30:40] = 255  # a hole
    expected = np.zeros((64, 64), bool)
    expected[10:30, 20:50] = True
    assert np.array_equal(example.outline(drawing), expected)


def test_a_scene_has_each_drawing_once() -> None:
    pictures = load("emoji")
    rows = make_plan(pictures, 1, 0, 0).train.rows
    scenes = example.compose(pictures, rows, seed=3)
    found = [label for scene in scenes.classes for label in np.unique(scene) if label != BACKGROUND]
    assert sorted(found) == sorted(pictures.labels[rows])
    for image, classes in zip(scenes.images, scenes.classes, strict=True):
        pixels = np.asarray(image)
        assert (pixels[classes == BACKGROUND] == 255).all()
        assert (pixels[classes != BACKGROUND] < 243).any(axis=-1).mean() > 0.5


def test_a_patch_has_the_class_of_most_of_it() -> None:
    classes = np.full((1, example.SIDE, example.SIDE), BACKGROUND)
    classes[0, :128, :128] = 30  # 7 of 14 patches each way
    classes[0, 128:, :60] = 5
    labels = example.patch_labels(example.Scenes([Image.new("RGB", (1, 1))], classes), np.array([5, 9, 30]))
    expected = torch.full((14, 14), BACKGROUND)
    expected[:7, :7], expected[7:, :3] = 2, 0  # the fourth column of patches begins at 54.9 and ends at 73.1
    assert torch.equal(labels[0].unflatten(0, (14, 14)), expected)


def test_mean_iou_by_hand() -> None:
    truth = np.array([[0, 0, 1, 1, BACKGROUND]])
    found = np.array([[0, 1, 1, 1, 0]])
    assert example.mean_iou(found, truth, np.array([0, 1, 2])) == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)


@pytest.mark.slow
def test_the_recipe(tmp_path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    short = [example.ZeroShot(), example.CoOp(epochs=1), example.SubPT(epochs=3, early_epochs=2, rank=1)]
    monkeypatch.setattr(example, "METHODS", (*short, example.ProGradCoOp(epochs=1)))
    out = tmp_path / "scenes.png"
    monkeypatch.setattr("sys.argv", ["segmentation.py", "--draws", "1", "--test-drawings", "12", "--out", str(out)])
    example.main()
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith("Without training the mean IoU is ")
    assert "ProGrad" in second
    assert third.startswith("The highest harmonic mean")
    with Image.open(out) as image:
        assert image.width > 1000


def test_sentences_say_what_the_numbers_say() -> None:
    numbers = [(16.0, 12.0), (15.0, 8.0), (14.5, 7.5), (18.0, 11.0)]
    table = {method.title: iou for method, iou in zip(example.METHODS, numbers, strict=True)}
    assert example.sentences(table) == [
        "Without training the mean IoU is 16.0 % on base classes and 12.0 % on new ones.",
        "Against that, CoOp has -1.0 points on base classes and -4.0 on new ones, SubPT -1.5 points on base classes "
        "and -4.5 on new ones, ProGrad +2.0 points on base classes and -1.0 on new ones.",
        "The highest harmonic mean of both is zero-shot's.",
    ]
