"""Guards prompt files: they come back whole, bad ones are refused, a failed write leaves nothing behind."""

import json
import os
import pickle

import pytest
import safetensors.torch
import torch

import prograd_fast as pf
from prograd_fast.methods import LASP, CoCoOp, CoOp, PromptSRC, Task, Variational
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


OTHERS = {
    "width": lambda: tiny_clip(width=48),
    "weights": lambda: changed(lambda model: model.text_projection.data.mul_(1.1)),
    "image tower": lambda: changed(lambda model: model.visual.proj.data.mul_(1.1)),
    "scale": lambda: changed(lambda model: model.logit_scale.data.add_(0.1)),
    "activation": lambda: tiny_clip(quick_gelu=True),
    "layers": lambda: tiny_clip(layers=3),
}


def changed(change):
    model = tiny_clip()
    change(model)
    return model


@pytest.mark.parametrize("other", OTHERS)
def test_another_model(model, tmp_path, other):
    pf.clip.save_prompt(tmp_path / "prompt", pf.clip.PromptedCLIP(model, TOKENIZER, CLASS_NAMES, 3))
    saved = pf.clip.load_prompt(tmp_path / "prompt")
    with pytest.raises(ValueError, match=r"the one that this context was tuned for \(digest") as caught:
        saved.build(OTHERS[other](), TOKENIZER)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("copy", ["again", "half", "float", "frozen"])
def test_the_same_model(model, tmp_path, copy):
    """A half-precision copy is the same model."""
    single = tiny_clip(dtype=torch.float32)
    pf.clip.save_prompt(tmp_path / "prompt", pf.clip.PromptedCLIP(single, TOKENIZER, CLASS_NAMES, 3))
    saved = pf.clip.load_prompt(tmp_path / "prompt")
    copies = {
        "again": lambda: tiny_clip(dtype=torch.float32),
        "half": lambda: tiny_clip(dtype=torch.float32).half(),
        "float": lambda: tiny_clip(dtype=torch.float32).half().float(),
        "frozen": lambda: single.requires_grad_(False),
    }
    assert saved.build(copies[copy](), TOKENIZER).class_names == saved.class_names


def test_a_digest_follows_the_weights():
    model = tiny_clip()
    before = pf.clip.model_digest(model)
    assert pf.clip.model_digest(model) == before
    with torch.no_grad():
        model.logit_scale.add_(0.5)
    changed = pf.clip.model_digest(model)
    assert changed != before
    with torch.inference_mode():
        model.logit_scale = torch.nn.Parameter(model.logit_scale - 0.5, requires_grad=False)
    assert pf.clip.model_digest(model) == before


METHODS = [  # what is learned beside the context
    CoCoOp(),
    PromptSRC(sentences=("a photo of a {}.",)),
    LASP(sentences=("a photo of a {}.",)),
    Variational(),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_more_than_a_context_is_not_left_out(tmp_path, method):
    model = tiny_clip(dtype=torch.float32)
    x, labels = torch.eye(24)[:4], torch.arange(4)
    method.start(Task(model, TOKENIZER, CLASS_NAMES[:4], x, labels)).save(tmp_path / "prompt")
    with pytest.raises(ValueError, match=r"more was learned than a context \(.*prograd_fast\.training\.open_run"):
        pf.clip.load_prompt(tmp_path / "prompt").build(model, TOKENIZER)


@pytest.mark.parametrize(
    "method", [CoOp(), PromptSRC(depth=1, sentences=("a photo of a {}.",))], ids=["CoOp", "depth 1"]
)
def test_a_context_alone_is_built(tmp_path, method):
    model = tiny_clip(dtype=torch.float32)
    learner = method.start(Task(model, TOKENIZER, CLASS_NAMES[:4], torch.eye(24)[:4], torch.arange(4)))
    learner.save(tmp_path / "prompt")
    net = pf.clip.load_prompt(tmp_path / "prompt").build(model, TOKENIZER)
    x = torch.eye(24)
    torch.testing.assert_close(net.logits(x).softmax(1), learner.scores(CLASS_NAMES[:4])(x).softmax(1))


def header(**changes):
    fields = {
        "class_names": ["cat", "dog"],
        "class_specific": False,
        "class_token_position": "end",
        "n_ctx": 2,
        "text_width": 4,
        "model_digest": "0" * 64,
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
