"""The recipes with tiny settings: three sentences and a picture; and the sentences say what the numbers say."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from examples.neighbours import auvit, larger_teacher, simpleclick, structure_coherence, subpixel_heatmaps

# the settings of the command
RECIPES: dict[ModuleType, list[str]] = {
    structure_coherence: ["--pictures", "32", "--epochs", "1"],
    subpixel_heatmaps: ["--pictures", "32", "--epochs", "1", "--maps", "20"],
    simpleclick: ["--scenes", "8", "--steps", "1"],
}


def run(recipe: ModuleType, options: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    picture = folder / "picture.png"
    monkeypatch.setattr(sys, "argv", [recipe.__name__, *options, "--out", str(picture)])
    recipe.main()
    return picture


@pytest.mark.parametrize(
    "recipe",
    [structure_coherence, subpixel_heatmaps, pytest.param(simpleclick, marks=pytest.mark.slow)],
    ids=lambda recipe: recipe.__name__.split(".")[-1],
)
def test_recipe(
    recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(simpleclick, "MOST", 4)
    picture = run(recipe, RECIPES[recipe], tmp_path, monkeypatch)
    with Image.open(picture) as image:
        assert image.width > 1000
    sentences = capsys.readouterr().out.splitlines()
    assert len(sentences) == 3
    assert all(sentence.endswith(".") for sentence in sentences)


@pytest.mark.slow
def test_recipe_of_auvit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It loads the embedded model's image tower."""
    picture = run(auvit, ["--steps", "1", "--splits", "1", "--rho", "1"], tmp_path, monkeypatch)
    with Image.open(picture) as image:
        assert image.width > 1000
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_sentences_follow_the_numbers() -> None:
    shares = zip(structure_coherence.COLOURS, (0.08, 0.06, 0.04, 0.02), strict=True)
    errors = {name: torch.tensor([x, 3 * x]) for name, x in shares}
    first, second, third = structure_coherence.sentences(errors, torch.tensor([True, False]))
    assert first.startswith("The lowest mean error has dynamic graph, 4.00% of the eyes' distance; the fully connected")
    assert "50.0% for fully connected, 50.0% for fully connected, offsets, 50.0% for static graph, 0.0% for" in second
    assert "dynamic graph is 75% lower on open faces and 75% lower on half hidden faces" in third

    good, bad = torch.tensor([[0.7, 0.3], [0.6, 0.3]]), torch.tensor([[0.4, 0.2], [0.3, 0.2]])
    results = {auvit.PLAIN: bad, "ρ = 1": good, "ρ = 10": bad, auvit.PROJECTED: good}
    first, second, third = auvit.sentences(results, 0.25)
    assert "right for 35.0% of the drawings (the commonest class: 25.0%)" in first
    assert "35.0% (ρ = 10) to 65.0% (ρ = 1), and the projection for 65.0%" in first
    assert "is not shown to be needed" in second
    assert "is still needed" in auvit.sentences({**results, auvit.PROJECTED: bad}, 0.25)[1]
    assert "0.300 with the projection, 0.300 with ρ = 1 and 0.200 at best" in third

    ious = {simpleclick.NET: torch.tensor([[0.5, 0.95]]), simpleclick.DISCS: torch.tensor([[0.4, 0.82]])}
    first, second, third = simpleclick.sentences(ious, 8)
    assert "needs 2.00 clicks to an IoU of 85 % and 2.00 to 90 %" in first
    assert "discs of 8 pixels around the clicks need 2.00 and 2.00" in first
    assert "50.0% after one click" in second
    assert "of discs it is 40.0%, 82.0% and 82.0%" in second
    assert third.startswith("100% of the scenes")
    assert third.endswith("with discs 0% and 0%.")


def test_discs_and_clicks_at_random() -> None:
    """A disc ends at its radius and where a click beside the object is nearer; random clicks lie where they should."""
    clicks = torch.full((1, 4, 3), -1.0)
    clicks[0, 0, :2], clicks[0, 2, :2] = torch.tensor([20.0, 20.0]), torch.tensor([20.0, 26.0])
    found = simpleclick.discs(5, clicks, torch.zeros(1, 1, 64, 64))[0, 0]
    assert found[20].nonzero()[:, 0].tolist() == list(range(15, 24))  # 23 is as near to both
    assert found.sum(0)[20] == 11
    masks = torch.zeros(32, 64, 64, dtype=torch.long)
    masks[:, 10:30, 10:30] = 1
    clicks = simpleclick.random_clicks(masks, torch.Generator().manual_seed(0)).long()
    for b in range(32):
        halves = [half[half[:, 0] >= 0] for half in clicks[b].split(10)]
        assert len(halves[0]) >= 1
        assert sum(map(len, halves)) <= 8
        for half, value in zip(halves, (1, 0), strict=True):
            assert (masks[b, half[:, 0], half[:, 1]] == value).all()


def test_masks_of_drawings() -> None:
    """White inside of a drawing belongs to it; white around it does not, where it is joined to the border."""
    picture = Image.new("RGB", (20, 20), "white")
    picture.paste((0, 0, 255), (5, 5, 15, 15))
    picture.paste((255, 255, 255), (8, 8, 12, 12))
    alpha = simpleclick.cut_out(picture).getchannel("A")
    assert alpha.getbbox() == (5, 5, 15, 15)
    assert alpha.getpixel((10, 10)) == 255
    picture = Image.new("RGB", (20, 20), (0, 255, 0))  # no white at all
    assert simpleclick.cut_out(picture).getchannel("A").getextrema() == (255, 255)


def test_recipe_of_the_larger_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said follows the numbers; the training is that of `tests/methods/test_teacher.py`."""
    monkeypatch.setattr(larger_teacher, "measure", lambda *counts: right)
    parts = dict.fromkeys([*larger_teacher.PARTS, larger_teacher.CONFLICTS], 30.0)
    right = dict.fromkeys([*larger_teacher.UNTOUCHED.values(), larger_teacher.PLAIN, larger_teacher.OWN], parts)
    right |= {larger_teacher.TAUGHT: dict(parts, new=36.0, conflicts=4.4, **{"harmonic mean": 32.7})}
    picture = run(larger_teacher, [], tmp_path, monkeypatch)
    with Image.open(picture) as image:
        assert image.width > 1000
    first, second, third = larger_teacher.sentences(right, 4, 3)
    assert first.startswith(
        "Untouched, emoji-lite is right for 30.0 and 30.0 % of base and new classes, emoji-lite-named"
    )
    assert "for 30.0 and 30.0 %, projected on its own" in second
    assert "30.0 and 36.0 %: in the harmonic mean 2.7 points more than with its own zero-shot logits;" in third
    assert third.endswith("conflict with the labels in 4 % of the steps, its own in 30 %.")


@pytest.mark.slow
def test_the_larger_teacher_teaches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It loads both embedded models."""
    run(larger_teacher, ["--seeds", "1", "--shots", "1", "--epochs", "1"], tmp_path, monkeypatch)
