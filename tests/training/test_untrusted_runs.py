"""A stranger's run or file of weights runs no code, and opens nothing that nobody asked for."""

import json
import os
import pickle
import socket
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from prograd_fast import cli
from prograd_fast.clip import is_known_model, load, load_model
from prograd_fast.clip.pretrained import weights
from prograd_fast.clip.prompt_file import load_learned, save_learned
from prograd_fast.training import load_run, predict_files, save_run
from tests.cli.support import fail, run_here
from tests.conftest import draw
from tests.fuzz.files import refused_in_one_line
from tests.tiny_clip import tiny_clip
from tests.training.support import no_bars, train_once

TINY = {
    "embed_dim": 24,
    "vision_cfg": {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 16},
    "text_cfg": {"width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module", autouse=True)
def _tiny_architecture(tmp_path_factory) -> None:
    """open_clip knows an architecture of a few layers, "tiny", that has no weights of its own."""
    file = tmp_path_factory.mktemp("architectures") / "tiny.json"
    file.write_text(json.dumps(TINY))
    open_clip.add_model_config(file)


@pytest.fixture(scope="module")
def run_of(clip, shapes, tmp_path_factory):
    """A run folder, whole in every respect, whose record names any model."""
    record, learner = train_once(clip, shapes)

    def make(name: str, pretrained: str | None) -> Path:
        folder = tmp_path_factory.mktemp("run")
        save_run(folder, {**record, "model": {**record["model"], "name": name, "pretrained": pretrained}}, learner)
        return folder

    return make


class Runs:
    """The deed that no pickle may do: it leaves a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


class RaisesTypeError(Runs):
    """The kind of error at which open_clip tries again without `weights_only`."""

    def __reduce__(self):
        return exec, (f"import pathlib; pathlib.Path({str(self.marker)!r}).touch(); raise TypeError",)


def script(marker: Path, file: Path) -> None:
    torch.jit.script(torch.nn.Linear(1, 1)).save(file)


WEIGHTS = {
    "zip": lambda marker, file: torch.save({"positional_embedding": Runs(marker)}, file),
    "zip, state_dict": lambda marker, file: torch.save({"state_dict": {"a": torch.ones(1)}, "b": Runs(marker)}, file),
    "legacy": lambda marker, file: torch.save(Runs(marker), file, _use_new_zipfile_serialization=False),
    "pickle": lambda marker, file: file.write_bytes(pickle.dumps(Runs(marker))),
    "TypeError": lambda marker, file: torch.save(RaisesTypeError(marker), file),
    "TorchScript": script,
    "text": lambda marker, file: file.write_text("no weights"),
    "empty": lambda marker, file: file.touch(),
}


@pytest.mark.filterwarnings("ignore")  # torch's about TorchScript
@pytest.mark.parametrize(
    ("suffix", "force"),
    [(".pt", False), (".pt", True), (".bin", True), (".safetensors", True), (".npz", True), (".npy", True), ("", True)],
)
@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_run_no_code(tmp_path, monkeypatch, kind, suffix, force):
    if force:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker, file = tmp_path / "marker", tmp_path / f"weights{suffix}"
    WEIGHTS[kind](marker, file)
    with pytest.raises(ValueError, match="cannot load model 'tiny' with weights") as caught:
        load_model("tiny", str(file), "cpu")
    assert not marker.exists()
    assert "\n" not in str(caught.value)
    assert "weights_only=False" not in str(caught.value)  # torch's own advice


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "model.pth", "open_clip_model.safetensors"])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_model_folders_run_no_code(tmp_path, monkeypatch, kind, name):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    WEIGHTS[kind](tmp_path / "marker", tmp_path / name)
    with pytest.raises(ValueError, match="cannot load model 'local-dir:"):
        load_model(f"local-dir:{tmp_path}", None, "cpu")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_cfg": TINY | {"text_cfg": {"tokenizer_kwargs": {"trust_remote_code": True}}}}, "trust_remote_code"),
        ({"model_cfg": TINY}, "could not be loaded"),  # no weights: never with those of a random start
        ({"model_cfg": [1]}, "'list' object"),
        ({}, "missing 'model_cfg'"),
    ],
)
def test_model_folders_that_are_refused(tmp_path, config, message):
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"cannot load model.*{message}"):
        load_model(f"local-dir:{tmp_path}", None, "cpu")


@pytest.mark.parametrize("name", ["open_clip_config.json", "open_clip_model.safetensors", "model.pth", "a.bin"])
def test_model_folder_with_a_pipe_does_not_wait(tmp_path, name):
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match="not a regular file"):
        load_model(f"local-dir:{tmp_path}", None, "cpu")


@pytest.mark.parametrize(
    "save", [lambda *given: torch.save(*given), lambda state, file: torch.save({"state_dict": state}, file)]
)
@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_tensors_alone_are_read(tmp_path, monkeypatch, save, legacy):
    state = tiny_clip(dtype=torch.float32).state_dict()
    with monkeypatch.context() as patch:
        if legacy:
            plain = torch.save
            patch.setattr(torch, "save", lambda *a: plain(*a, _use_new_zipfile_serialization=False))
        save(state, tmp_path / "weights.pt")
    if weights._TORCH >= (2, 10):
        loaded = load_model("tiny", str(tmp_path / "weights.pt"), "cpu")
        assert torch.equal(loaded.model.text_projection, state["text_projection"])
    monkeypatch.setattr(weights, "_TORCH", (2, 9))
    if legacy:
        with pytest.raises(ValueError, match=r"torch 2\.10 and newer only .*CVE-2026-24747"):
            load_model("tiny", str(tmp_path / "weights.pt"), "cpu")
    else:  # read without torch's unpickler
        load_model("tiny", str(tmp_path / "weights.pt"), "cpu")


def test_safetensors_are_read_with_any_torch(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "_TORCH", (2, 6))
    save_file(tiny_clip(dtype=torch.float32).state_dict(), tmp_path / "weights.safetensors")
    assert load_model("tiny", str(tmp_path / "weights.safetensors"), "cpu").name == "tiny"


def test_a_tag_is_no_file_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "openai").write_text("a stranger's")
    monkeypatch.chdir(tmp_path)
    asked = []

    def create(name, **options):
        asked.append(options["pretrained"])
        raise RuntimeError("enough")

    monkeypatch.setattr(open_clip, "create_model_and_transforms", create)
    with pytest.raises(ValueError, match="enough"):
        load_model("ViT-B-32", "openai", "cpu")
    with pytest.raises(ValueError, match=f"{tmp_path}/openai is damaged"):
        load_model("ViT-B-32", "./openai", "cpu")
    assert asked == ["openai"]


# ---------------------------------------------------------------------------------------------------------------- runs

FOREIGN = [
    ("local-dir:/tmp/somewhere", None),
    ("hf-hub:somebody/something", None),
    ("hf-hub:somebody/something", "openai"),
    ("ViT-B-32", "/tmp/weights.pt"),
    ("ViT-B-32", "weights.pt"),
    ("ViT-B-32", "laion400m_e99"),
    ("ViT-B-32", "OPENAI"),
    ("ViT-B-32", None),
    ("ViT-L-14", "laion2b_s34b_b79k"),  # a tag of another architecture
    ("tiny", "openai"),
    ("nothing", None),
    ("emoji-lite", "openai"),
    ("emoji-lite/../x", None),
    ("", None),
]


@pytest.mark.parametrize(("name", "pretrained"), FOREIGN)
def test_foreign_models_of_a_record_are_not_opened(name, pretrained, run_of, tmp_path, capfd, monkeypatch):
    assert not is_known_model(name, pretrained)

    def opened(*args, **options):
        raise AssertionError("a model was opened")

    monkeypatch.setattr(load, "_device", opened)
    monkeypatch.setattr(open_clip, "create_model_and_transforms", opened)
    monkeypatch.setattr(socket.socket, "connect", opened)
    run, picture = run_of(name, pretrained), tmp_path / "a picture.png"
    draw("red_circle", 0).save(picture)
    line = fail(capfd, monkeypatch, "predict", run, picture)
    assert repr(name) in line
    assert f"type: prograd-fast predict --trust {run} '{picture}'." in line
    assert "--trust" in fail(capfd, monkeypatch, "evaluate", run, "--data", "emoji")


def test_an_empty_name_of_a_model_is_no_trust(run_of, clip_dir, tmp_path, capfd):
    """As a script gives it whose variable is not set."""
    run = run_of(f"local-dir:{clip_dir}", None)
    draw("red_circle", 0).save(tmp_path / "a.png")
    assert cli.run(["predict", str(run), str(tmp_path / "a.png"), "--model", ""]) == 2
    assert "unknown model ''" in capfd.readouterr().err


def test_known_models():
    assert is_known_model("emoji-lite", None)
    assert is_known_model("ViT-B-32", "openai")
    assert is_known_model("ViT-B-32", "laion2b_s34b_b79k")


@pytest.mark.parametrize("how", ["trust", "model"])
def test_what_the_command_line_allows_is_used(how, run_of, clip, clip_dir, tmp_path, capfd, monkeypatch):
    run = run_of(f"local-dir:{clip_dir}", None) if how == "trust" else run_of("hf-hub:somebody/something", None)
    picture = tmp_path / "a.png"
    draw("red_circle", 0).save(picture)
    options = ["--trust"] if how == "trust" else ["--model", f"local-dir:{clip_dir}"]
    assert run_here(monkeypatch, "predict", run, picture, *options) == 0
    said = capfd.readouterr()
    assert "Most likely of 4 classes" in said.out
    used = f"was made with the model 'hf-hub:somebody/something', and is used with the model '{clip.name}' now"
    assert (used in said.err) == (how == "model")


def test_other_weights_for_the_architecture_of_a_record(run_of, tmp_path, capfd, monkeypatch):
    weights, picture = tmp_path / "weights.safetensors", tmp_path / "a.png"
    save_file(tiny_clip(dtype=torch.float32).state_dict(), weights)
    draw("red_circle", 0).save(picture)
    run = run_of("tiny", "/nowhere.pt")
    assert run_here(monkeypatch, "predict", run, picture, "--pretrained", weights) == 0
    assert f"used with the model 'tiny' with weights '{weights}' now" in capfd.readouterr().err
    hub = run_of("hf-hub:somebody/something", None)
    assert "brings its own weights" in fail(capfd, monkeypatch, "predict", hub, picture, "--pretrained", weights)


def test_train_tells_how_to_use_the_run(shapes_dir, clip_dir, tmp_path, capfd, monkeypatch):
    arguments = ["--data", shapes_dir, "--shots", 1, "--epochs", 1, "--model", f"local-dir:{clip_dir}"]
    assert run_here(monkeypatch, "train", *arguments, "--out", tmp_path / "run") == 0
    assert "PICTURE... --trust" in capfd.readouterr().out


@pytest.mark.parametrize(
    "settings",
    [
        {"n_ctx": 2**62},
        {"n_ctx": 10**9},
        {"lr": 2**62, "epochs": 2**62},
        {"ctx_init": "\ud800"},
        {"templates": ["{}"] * 3, "temperature": 1e308},
    ],
)
def test_settings_of_a_record_that_cannot_be(clip, shapes, tmp_path, settings):
    record, learner = train_once(clip, shapes)
    save_run(tmp_path, {**record, "settings": {**record["settings"], **settings}}, learner)
    with refused_in_one_line():
        read, learned = load_run(tmp_path)
        predict_files(read, learned, clip, [Path(shapes.source[0])], no_bars)


def test_a_context_beyond_float32_is_refused(tmp_path):
    """A float64 that is finite becomes infinite in the model, and every probability NaN."""
    file = tmp_path / "prompt.safetensors"
    save_learned(file, {"ctx": torch.full((2, 4), 1e300, dtype=torch.float64)}, {})
    with pytest.raises(ValueError, match="ctx has NaN or infinite values"):
        load_learned(file)
