"""Exported files give the run's own probabilities, and the Python that they bring along works as it stands."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F

import prograd_fast.clip
from prograd_fast.clip import LoadedClip
from prograd_fast.export import Exported, classifier_of, nearest_words, onnx, write_numpy, write_onnx, write_open_clip
from prograd_fast.export.exported import prompts_of
from prograd_fast.export.words import text_of
from prograd_fast.methods import Learner, PromptTuningLearner
from tests.cli.support import fail, run_here
from tests.methods.support import make_task
from tests.methods.test_every_method import FORMS, NAMES, small
from tests.tiny_clip import CLASS_NAMES, TOKENIZER, tiny_clip

PER_PICTURE = ("cocoop", "CoCoOp + ProGrad", "variational CoCoOp")
NO_MATRIX = ("tip-adapter", "tip-adapter-f", "clip-adapter", "cross-modal adapter", "proker", "prolip")
ALIKE = [name for name in [*NAMES, *FORMS] if name not in (*PER_PICTURE, *NO_MATRIX)]


def learner_of(name: str, dtype: torch.dtype = torch.float64) -> Learner:
    """A learner whose parameters are away from where they start."""
    learner = small(name).start(make_task(dtype=dtype, method=small(name)))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in learner.module.parameters():
            p += 0.05 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return learner


def exported(name: str) -> tuple[Exported, Learner, LoadedClip]:
    learner = learner_of(name, torch.float32)
    model = learner.task.model if hasattr(learner, "task") else tiny_clip(dtype=torch.float32)
    clip = LoadedClip("tiny", None, model, TOKENIZER, _Preprocess(), torch.device("cpu"))
    record = {"data": {"class_names": CLASS_NAMES}, "trained_classes": CLASS_NAMES}
    return Exported.of(record, small(name), learner, clip), learner, clip


class _Preprocess:
    def __call__(self, image):
        return torch.zeros(3, 16, 16)


def unit_rows(n: int = 7, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return F.normalize(torch.randn(n, 24, generator=torch.Generator().manual_seed(2), dtype=dtype), dim=-1)


@pytest.mark.parametrize("name", ALIKE)
def test_classifier_gives_the_learners_probabilities(name):
    learner, x = learner_of(name), unit_rows()
    classifier = classifier_of(learner, CLASS_NAMES)
    expected = learner.scores(CLASS_NAMES)(x).softmax(dim=1)
    assert classifier.class_names == tuple(CLASS_NAMES)
    assert classifier.weight.dtype == torch.float32
    assert (classifier(x.float()) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("name", PER_PICTURE)
def test_class_features_of_each_picture_are_refused(name):
    with pytest.raises(ValueError, match="other class features for every picture"):
        classifier_of(learner_of(name), CLASS_NAMES)


@pytest.mark.parametrize("name", NO_MATRIX)
def test_heads_that_are_not_linear_are_refused(name):
    learner = learner_of(name)
    with pytest.raises(ValueError, match=f"{learner.settings.title} is no matrix, .*prograd-fast predict"):
        classifier_of(learner, CLASS_NAMES)


def test_an_unknown_learner_is_refused_with_its_name():
    with pytest.raises(ValueError, match="SimpleNamespace is no matrix"):
        classifier_of(SimpleNamespace(), CLASS_NAMES)


@pytest.mark.parametrize("name", [name for name in ALIKE if name not in ("variational",)])
def test_open_clip_file_and_its_usage(name, tmp_path, monkeypatch):
    file, learner, clip = (*_written(write_open_clip, name, tmp_path / "x.safetensors"),)
    with safe_open(file, "pt") as opened:
        usage = opened.metadata()["usage"]
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    monkeypatch.setattr(prograd_fast.clip, "load_model", lambda name, device: {"tiny": clip}[name])
    found = _run(usage, tmp_path, monkeypatch, images=images)
    expected = learner.scores(CLASS_NAMES)(F.normalize(clip.model.encode_image(images), dim=-1)).softmax(dim=1)
    assert found["class_names"] == CLASS_NAMES
    assert found["tensors"]["zeroshot_weights"].shape == (24, 5)
    assert (found["probabilities"] - expected).abs().max() < 1e-5
    if "prompts" in found:
        assert (found["class_features"].T - found["tensors"]["zeroshot_weights"]).abs().max() < 1e-5


@pytest.mark.parametrize("quick", [False, True])
def test_usage_names_the_activation_that_the_weights_need(quick):
    learner, model = learner_of("zero-shot"), tiny_clip(quick_gelu=quick)
    clip = LoadedClip("tiny", "w.pt", model, TOKENIZER, _Preprocess(), torch.device("cpu"))
    record = {"data": {"class_names": CLASS_NAMES}, "trained_classes": CLASS_NAMES}
    content = Exported.of(record, small("zero-shot"), learner, clip)
    assert (
        f"load_model('tiny', 'w.pt', device=\"cpu\")  # with open_clip alone: force_quick_gelu={quick}"
        in content.model_use
    )


def test_methods_with_plain_prompts_say_how_to_use_them():
    assert all(exported(name)[0].prompt_use for name in ("coop", "prograd", "kgcoop", "atprompt"))
    assert not any(exported(name)[0].prompt_use for name in ("promptsrc", "tcp", "lasp", "variational", "linear-probe"))


@pytest.mark.parametrize("name", ["coop", "linear-probe", "variational"])
def test_numpy_file_and_its_usage(name, tmp_path, monkeypatch):
    file, learner, _ = _written(write_numpy, name, tmp_path / "x.npz")
    x = unit_rows(dtype=torch.float32)
    with np.load(file, allow_pickle=False) as arrays:
        usage = str(arrays["usage"])
    found = _run(usage, tmp_path, monkeypatch, image_features=x.numpy())
    expected = learner.scores(CLASS_NAMES)(x).softmax(dim=1)
    assert found["class_names"].tolist() == CLASS_NAMES
    assert np.abs(found["probabilities"] - expected.numpy()).max() < 1e-5


def test_several_matrices_have_no_place_in_open_clips_form(tmp_path):
    with pytest.raises(ValueError, match=r"averages .* 3 matrices.*--to numpy"):
        write_open_clip(tmp_path / "x.safetensors", exported("variational")[0])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["coop", "promptsrc", "tcp", "lasp"])
def test_prompts_give_the_class_features(name):
    learner = learner_of(name)
    assert isinstance(learner, PromptTuningLearner)
    parts = prompts_of(learner, CLASS_NAMES)
    deep, before = parts.get("class_tokens", parts.get("deep")), parts.get("class_tokens_before")
    before = None if before is None else int(before)
    features = learner.net.tower.encode(parts["prompts"], parts["token_ids"], deep, before)
    features = F.normalize(features + parts.get("correction", 0), dim=-1)
    assert (features - learner.class_features(CLASS_NAMES)).abs().max() < 1e-9


def test_onnx_file_gives_the_probabilities_for_any_batch(tmp_path, monkeypatch):
    file, learner, clip = _written(write_onnx, "coop", tmp_path / "x.onnx")
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["class_names"]) == CLASS_NAMES
    assert [facts["method"], facts["model"]] == ["coop", "tiny"]
    for n in (1, 4):
        images = torch.randn(n, 3, 16, 16)
        found = _run(facts["usage"], tmp_path, monkeypatch, images=images.numpy())["probabilities"]
        expected = learner.scores(CLASS_NAMES)(F.normalize(clip.model.encode_image(images), dim=-1)).softmax(dim=1)
        assert np.abs(found - expected.detach().numpy()).max() < onnx.TOLERANCE


@pytest.mark.parametrize("wrong", [0.3, float("nan")])
def test_onnx_file_that_differs_is_not_kept(wrong, tmp_path, monkeypatch):
    import onnxruntime

    def program(*arguments):
        model = SimpleNamespace(metadata_props={})
        return SimpleNamespace(model=model, save=lambda path: path.write_bytes(b"wrong"))

    session = SimpleNamespace(run=lambda outputs, inputs: [np.full((len(inputs["images"]), 5), wrong, np.float32)])
    monkeypatch.setattr(onnx, "_exported_program", program)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *arguments, **options: session)
    with pytest.raises(ValueError, match=r"differ from PyTorch's by .*; expected 0\.0001 at most"):
        _written(write_onnx, "coop", tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_image_tower_that_is_too_large_or_cannot_be_exported_is_refused_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.onnx, "export", lambda *arguments, **options: 1 / 0)
    with pytest.raises(ValueError, match="cannot export this image tower to ONNX: ZeroDivisionError: division by zero"):
        _written(write_onnx, "coop", tmp_path / "x.onnx")
    monkeypatch.setattr(onnx, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="GB of weights"):
        _written(write_onnx, "coop", tmp_path / "x.onnx")


def _written(write, name, file):
    """Write a file; the file, the learner and the model."""
    content, learner, clip = exported(name)
    if write is write_onnx:
        write(file, content, clip, learner.scores(CLASS_NAMES))
    else:
        write(file, content)
    return file, learner, clip


def _run(usage, folder, monkeypatch, **names):
    """The names that a file's own usage leaves behind, run as a user would."""
    monkeypatch.chdir(folder)
    with torch.no_grad():
        exec(usage, names)
    return names


def test_nearest_words_are_the_words_themselves_where_nothing_was_learned():
    learner = small("coop", ctx_init="a photo of a").start(make_task())
    tower = learner.net.tower
    for token, word in zip(
        nearest_words(learner.net.prompt.ctx, tower.embedding.weight, TOKENIZER, 2),
        ["a", "photo", "of", "a"],
        strict=True,
    ):
        assert token.by_cosine[0].text == token.by_distance[0].text == word
        assert token.by_cosine[0].value == pytest.approx(1)
        assert token.by_distance[0].value == pytest.approx(0, abs=1e-6)
        assert token.by_distance[1].value > 0
        assert token.by_cosine[1].value < 1


def test_a_part_of_a_word_is_marked_and_a_tokenizer_without_words_gives_numbers():
    assert text_of(TOKENIZER, TOKENIZER.encoder["ph"]) == "ph-"
    assert text_of(TOKENIZER, TOKENIZER.encoder["photo</w>"]) == "photo"
    assert text_of(lambda texts: None, 7) == "#7"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, shapes_dir, clip_dir):
    out = tmp_path_factory.mktemp("runs") / "run"
    arguments = ["--data", shapes_dir, "--shots", 2, "--epochs", 2, "--model", f"local-dir:{clip_dir}", "--out", out]
    with pytest.MonkeyPatch.context() as patch:
        assert run_here(patch, "train", *arguments) == 0
    return out


@pytest.mark.parametrize(("to", "suffix"), [("open_clip", ".safetensors"), ("numpy", ".npz")])
def test_export_writes_a_file_or_into_a_folder(to, suffix, run_folder, tmp_path, monkeypatch, capfd):
    for out, file in ((tmp_path / f"x{suffix}", f"x{suffix}"), (tmp_path / "v1.2", f"v1.2/classifier{suffix}")):
        assert run_here(monkeypatch, "export", run_folder, "--to", to, "--out", out, "--trust") == 0
        assert (tmp_path / file).is_file()
    assert "black dot" in json.loads(_class_names(tmp_path / f"x{suffix}"))
    assert "zeroshot_weights" in capfd.readouterr().out


def _class_names(file):
    if file.suffix == ".npz":
        return json.dumps(np.load(file)["class_names"].tolist())
    with safe_open(file, "pt") as opened:
        return opened.metadata()["class_names"]


def test_export_refuses_a_name_of_another_form(run_folder, tmp_path, monkeypatch, capfd):
    line = fail(capfd, monkeypatch, "export", run_folder, "--to", "numpy", "--out", tmp_path / "x.onnx", "--trust")
    assert "expected a name that ends in .npz for --to numpy, or a folder" in line
    assert "open_clip" in fail(capfd, monkeypatch, "export", run_folder, "--to", "tflite", "--out", tmp_path)


def test_interpret_prints_and_writes_the_words(run_folder, tmp_path, monkeypatch, capfd):
    file = tmp_path / "words.json"
    assert run_here(monkeypatch, "interpret", run_folder, "--top", 2, "--json", file, "--trust") == 0
    tokens = json.loads(file.read_text())["tokens"]
    assert len(tokens) == 4
    assert {len(token[kind]) for token in tokens for kind in ("cosine", "distance")} == {2}
    assert tokens[1]["cosine"][0]["text"] in capfd.readouterr().out


def test_interpret_refuses_a_run_without_context(tmp_path, shapes_dir, clip_dir, monkeypatch, capfd):
    arguments = ["--data", shapes_dir, "--model", f"local-dir:{clip_dir}", "--method", "zero-shot"]
    assert run_here(monkeypatch, "train", *arguments, "--out", tmp_path / "run") == 0
    capfd.readouterr()
    line = fail(capfd, monkeypatch, "interpret", tmp_path / "run", "--trust")
    assert "is a run of zero-shot, which learns no context tokens" in line
