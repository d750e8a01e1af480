"""The command `models`: what --model takes, its sizes and weights, and what is on disk."""

from pathlib import Path

import pytest
from open_clip.pretrained import get_pretrained_cfg

from prograd_fast import cli
from prograd_fast.clip.pretrained import catalogue
from prograd_fast.clip.pretrained.catalogue import count_parameters, matching_entries, usual_entries


def test_the_list_is_short(capfd, monkeypatch):
    monkeypatch.setattr(catalogue, "count_parameters", lambda name: 151_277_313)
    assert cli.run(["models"]) == 0
    said = capfd.readouterr().out
    for name in ("emoji-lite", "ViT-B-32", "RN50", "ViT-B-16-SigLIP", "151", "605", "models PART_OF_A_NAME"):
        assert name in said
    assert len(said.splitlines()) < 30


def test_a_part_of_a_name_in_any_case(capfd):
    assert {entry.name for entry in matching_entries("EMOJI")} == {"emoji-lite", "emoji-lite-named"}
    assert cli.run(["models", "emoji"]) == 0
    said = capfd.readouterr().out
    assert "its own" in said
    assert "11" in said  # millions of parameters


def test_many_that_match(capfd, monkeypatch):
    monkeypatch.setattr(catalogue, "count_parameters", lambda name: None)
    assert cli.run(["models", "vit"]) == 0
    assert " more: " in capfd.readouterr().out


def test_the_weights_of_one(capfd, monkeypatch):
    monkeypatch.setattr(catalogue, "count_parameters", lambda name: None)
    assert cli.run(["models", "vit-b-32"]) == 0
    said = capfd.readouterr().out
    assert "Weights of --model ViT-B-32" in said
    assert "laion2b_s34b_b79k" in said


def test_no_such_model(capfd):
    assert cli.run(["models", "ViT-B32"]) == 2
    assert "no model has 'ViT-B32' in its name (did you mean ViT-B-32" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "millions"), [("emoji-lite", 11.1), ("ViT-B-32", 151.3), ("RN50", 102.0), ("roberta-ViT-B-32", None)]
)
def test_parameters(name, millions):
    """Those that OpenAI publishes for its models; a tower of Hugging Face's would have to be downloaded."""
    n = count_parameters(name)
    assert n is None if millions is None else n == pytest.approx(millions * 1e6, rel=0.01)


def test_what_is_on_disk(tmp_path, monkeypatch):
    """Where open_clip and the hub keep what they downloaded."""
    monkeypatch.setenv("HOME", str(tmp_path))
    url = get_pretrained_cfg("RN50", "yfcc15m")["url"]
    file = tmp_path / ".cache" / "clip" / Path(url).name
    file.parent.mkdir(parents=True)
    file.write_bytes(bytes(100))
    hub = tmp_path / "open_clip_model.safetensors"
    asked = []

    def cached(repository: str, name: str) -> str | None:
        asked.append((repository, name))
        return str(hub) if (repository, name) == ("timm/ViT-B-16-SigLIP", hub.name) else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    found = {entry.name: entry.on_disk for entry in usual_entries() if entry.on_disk}
    assert found["RN50"] == {"yfcc15m": file}
    assert found["ViT-B-16-SigLIP"] == {"webli": hub}
    assert ("timm/vit_base_patch32_clip_224.openai", hub.name) in asked
