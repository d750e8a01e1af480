"""The example that fine-tunes an image tower: its layers are the tower's, and the projection reaches them."""

import pytest
import torch

import prograd_fast as pf
from examples import finetune_vision_model as example
from prograd_fast.data import load
from prograd_fast.training.protocol import Part, make_plan
from tests.tolerances import assert_close


def test_the_two_halves_are_the_tower() -> None:
    tower = pf.clip.load_emoji_lite()[0].visual
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.normalize(tower(images), dim=-1)
    got = example.LastLayers(tower)(example.first_layers(tower, images)).detach()
    assert_close(got, expected, "tower", torch.float32)


def test_training_goes_on_in_the_last_layers_and_the_projection_changes_it() -> None:
    plan, pictures = make_plan(load("emoji"), shots=1, seed=0, partition=0), load("emoji")
    shots = example.prepare(plan.train, pictures)
    start = example.LastLayers(pf.clip.load_emoji_lite()[0].visual)
    plain, projected = (example.fine_tuned(start, shots, 2, project=project) for project in (False, True))
    weights = [dict(layers.named_parameters()) for layers in (start, plain, projected)]
    assert all(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[1][name], weights[2][name]) for name in weights[0])
    assert example.accuracy(plain, shots) > example.accuracy(start, shots)


@pytest.mark.slow
def test_the_example(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With tiny settings: the table has all models, and the numbers of the untouched one."""
    monkeypatch.setattr("sys.argv", ["finetune_vision_model.py", "--draws", "1", "--epochs", "1"])
    example.main()
    *table, _ = capsys.readouterr().out.splitlines()
    names = ("draw 1 of 1", "accuracy in %", "before fine-tuning", "fine-tuned", "fine-tuned, projected")
    assert [line[:24].strip() for line in table] == list(names)


def test_the_sentence_says_what_the_numbers_say() -> None:
    numbers = {"fine-tuned": (40.0, 20.0), "fine-tuned, projected": (39.5, 23.0)}
    assert "new classes is 3.0 points higher than without, and on the base classes it is 0.5 points lower." in (
        example.sentence(numbers)
    )


@pytest.mark.slow
def test_a_picture_is_right_when_its_own_name_is_the_likeliest() -> None:
    pictures, start = load("emoji"), example.LastLayers(pf.clip.load_emoji_lite()[0].visual)
    part = make_plan(pictures, shots=1, seed=0, partition=0).train
    prepared = example.prepare(Part(part.classes, part.rows[:5]), pictures)
    logits = prepared.classifier.logits(start(prepared.activations))
    right = [int(row.argmax()) == int(label) for row, label in zip(logits, prepared.labels, strict=True)]
    assert example.accuracy(start, prepared) == pytest.approx(100 * sum(right) / len(right))
