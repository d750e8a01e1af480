"""Guards the recipes' commands: a count that is too small is refused in one line, before anything is made."""

import sys
from importlib import import_module

import pytest

COUNTS = {
    "auvit": ("steps", "splits"),
    "edgevit": ("epochs",),
    "gsf_xvit": ("steps", "clips"),
    "iboot": ("unlabelled", "shots", "first-steps", "steps", "clips"),
    "larger_teacher": ("shots", "seeds", "epochs"),
    "rest": ("clips", "steps", "more", "captions"),
    "segmentation": ("draws", "test-drawings"),
    "simpleclick": ("scenes", "steps"),
    "structure_coherence": ("epochs", "pictures"),
    "subpixel_heatmaps": ("epochs", "maps", "pictures"),
    "tensorization": ("epochs", "steps"),
    "vast": ("steps", "clips"),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_that_are_too_small_are_refused(name, monkeypatch, capsys):
    recipe = import_module(f"examples.neighbours.{name}")
    for option in COUNTS[name]:
        lowest = 32 if option == "pictures" else 1  # a batch
        for text in (str(lowest - 1), "-3", "many", "1.5", ""):
            monkeypatch.setattr(sys, "argv", [name, f"--{option}={text}"])
            with pytest.raises(SystemExit):
                recipe.main()
            told = capsys.readouterr().err.splitlines()[-1]
            assert told.endswith(f"argument --{option}: expected an integer of {lowest} or more, got {text!r}")
