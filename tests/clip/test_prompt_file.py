"""Guards prompt files: they come back whole, bad ones are refused, a failed write leaves nothing behind."""

import json
import os
import pickle

import pytest
import safetensors.torch
import torch

import prograd_fast as pf
from tests.tiny_clip import CLASS_NAMES, TOKENIZER, tiny_clip

IMAGES = torch.zeros(1, 3, 16, 16, dtype=torch.float64)


@pytest.fixture(scope="module")
def model():
    return tiny_clip()


@pytest.mark.parametrize("class_specific", [False, True], ids=["shared", "class-specific"])
def test_round_trip(model, tmp_path, class_specific):
    net = pf.clip.PromptedCLIP(
        model, TOKENIZER, CLASS_NAMES, 3, class_specific=class_specific, class_token_position="middle"
    )
    path = tmp_path / "prompt.safetensors"
    pf.clip.save_prompt(path, net, shots=16, data={"name": "emoji"})
    saved = pf.clip.load_prompt(path)
    assert saved.metadata == {"shots": 16, "data": {"name": "emoji"}}
    assert saved.class_names == net.class_names
    assert saved.library_version == pf.__version__
    assert torch.equal(saved.build(model, TOKENIZER)(IMAGES), net(IMAGES))
    assert os.listdir(tmp_path) == [path.name]


def test_other_class_names(model, tmp_path):
    """Base to new: a shared context serves any names."""
    net = pf.clip.PromptedCLIP(model, TOKENIZER, CLASS_NAMES, 3)
    pf.clip.save_prompt(tmp_path / "prompt", net)
    new = pf.clip.load_prompt(tmp_path / "prompt").build(model, TOKENIZER, ["tulip"])
    assert torch.equal(new.class_features(), net.with_classes(["tulip"]).class_features())


def test_model_of_another_width(model, tmp_path):
    pf.clip.save_prompt(tmp_path / "prompt", pf.clip.PromptedCLIP(model, TOKENIZER, CLASS_NAMES, 3))
    saved = pf.clip.load_prompt(tmp_path / "prompt")
    wide = tiny_clip()
    wide.token_embedding = torch.nn.Embedding(49408, 48)
    with pytest.raises(
        ValueError, match=r"48\).*got torch.float64 of shape \(3, 32\).*the model that it was tuned for"
    ):
        saved.build(wide, TOKENIZER)


def header(**changes):
    fields = {
        "class_names": ["cat", "dog"],
        "class_specific": False,
        "class_token_position": "end",
        "n_ctx": 2,
        "text_width": 4,
        "library_version": "0",
        "metadata": {},
    }
    return {"prograd_fast": json.dumps(fields | changes)}


def whole_file(metadata, name="ctx"):
    return safetensors.torch.save({name: torch.zeros(2, 4)}, metadata)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a prompt",
        pickle.dumps({"ctx": [0.0]}),
        whole_file(header())[:-4],
        whole_file(None),
        whole_file(header(), name="other"),
        whole_file({"prograd_fast": "{"}),
        whole_file({"prograd_fast": "[]"}),
        whole_file(header(n_ctx=3)),
        whole_file(header(class_specific=True)),
    ],
    ids=[
        "empty",
        "text",
        "pickle",
        "cut off",
        "foreign safetensors",
        "no context",
        "broken JSON",
        "JSON of another kind",
        "other number of tokens",
        "no context per class",
    ],
)
def test_files_that_are_refused(tmp_path, content):
    path = tmp_path / "prompt.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"prompt\.safetensors is not a whole prompt file written by .*save_prompt"):
        pf.clip.load_prompt(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        pf.clip.load_prompt(tmp_path / "nowhere")


def test_failed_writes_leave_the_old_file(model, tmp_path, monkeypatch):
    net = pf.clip.PromptedCLIP(model, TOKENIZER, CLASS_NAMES, 3)
    path = tmp_path / "prompt"
    path.write_bytes(b"old")
    with pytest.raises(TypeError, match=r"metadata.*JSON.*Tensor"):
        pf.clip.save_prompt(path, net, accuracy=torch.tensor(1.0))

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        pf.clip.save_prompt(path, net)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["prompt"]


def test_missing_folder(model, tmp_path):
    net = pf.clip.PromptedCLIP(model, TOKENIZER, CLASS_NAMES, 3)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        pf.clip.save_prompt(tmp_path / "nowhere" / "prompt", net)
