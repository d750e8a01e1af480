"""Weights are known by their content, whatever holds them; a model gets the activation of its weights."""

import argparse
import json
import logging
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.model import CLIP
from safetensors.torch import save_file

from prograd_fast.clip import load_model
from prograd_fast.clip.pretrained import fill, read_weights
from tests.tiny_clip import tiny_clip

TINY = {
    "embed_dim": 24,
    "vision_cfg": {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 16},
    "text_cfg": {"width": 32, "heads": 2, "layers": 2},
}
HUGGING_FACE = {
    "hidden_size": 32,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "projection_dim": 24,
}
OPENAIS = {"input_resolution": torch.tensor(16), "context_length": torch.tensor(77), "vocab_size": torch.tensor(49408)}


@pytest.fixture(scope="module", autouse=True)
def _tiny_architectures(tmp_path_factory) -> None:
    """open_clip knows an architecture with either activation, "small", and one with GELU only, "tiny"."""
    folder = tmp_path_factory.mktemp("architectures")
    for name, config in {"tiny": TINY, "small": TINY, "small-quickgelu": TINY | {"quick_gelu": True}}.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


@pytest.fixture(scope="module")
def models() -> dict[bool, CLIP]:
    """The same weights, with QuickGELU (True) and with GELU."""
    return {quick: tiny_clip(dtype=torch.float32, quick_gelu=quick) for quick in (False, True)}


@pytest.fixture(scope="module")
def state(models):
    return models[True].state_dict()


IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TEXTS = open_clip.tokenize(["a cat", "a photo of a dog"])


def assert_same(loaded, model) -> None:
    for ours, theirs in ((loaded.encode_image(IMAGES), model.encode_image(IMAGES)),
                         (loaded.encode_text(TEXTS), model.encode_text(TEXTS))):  # fmt: skip
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def traced(model: CLIP, file: Path, **buffers: torch.Tensor) -> None:
    """TorchScript, as OpenAI publishes it."""
    model = tiny_clip(
        dtype=torch.float32, quick_gelu=type(model.visual.transformer.resblocks[0].mlp.gelu) is not torch.nn.GELU
    )
    for name, value in buffers.items():
        model.__dict__.pop(name, None)
        model.register_buffer(name, value)
    inputs = {"forward": (IMAGES, TEXTS), "encode_image": (IMAGES,), "encode_text": (TEXTS,)}
    torch.jit.trace_module(model, inputs, check_trace=False).save(str(file))


# -------------------------------------------------------------------------------------------------------- containers


def lightning(state):
    hyper_parameters = argparse.Namespace(lr=0.1, root=Path("/data"), model="ViT-B-16")
    own = {f"model.clip.{name}": value for name, value in state.items()} | {"model.head.weight": torch.ones(2, 2)}
    return {"epoch": 3, "pytorch-lightning_version": "2.5.0", "state_dict": own, "hyper_parameters": hyper_parameters,
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}]}  # fmt: skip


CONTAINERS = {
    "state dict": lambda state: state,
    "module.": lambda state: {f"module.{name}": value for name, value in state.items()},
    "compiled": lambda state: {f"module._orig_mod.{name}": value for name, value in state.items()},
    "open_clip's checkpoint": lambda state: {"epoch": 3, "state_dict": {f"module.{n}": v for n, v in state.items()}},
    "another trainer's": lambda state: {"model_state_dict": state, "optimizer": {"state": {}}},
    "Lightning": lightning,
    "parameters": lambda state: {name: torch.nn.Parameter(value) for name, value in state.items()},
    "views": lambda state: {name: torch.stack([value, value])[1] for name, value in state.items()},
    "transposed": lambda state: {n: v.T.contiguous().T if v.ndim == 2 else v for n, v in state.items()},
    "shared": lambda state: state | {"logit_scale": state["logit_scale"].reshape(1)},
    "masks": lambda state: state | {"attn_mask": torch.zeros(77, 77)},
}


@pytest.mark.parametrize("name", ["weights.pt", "weights", "weights.safetensors", "weights.npy.bin"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_containers(models, state, tmp_path, container, name):
    torch.save(CONTAINERS[container](state), tmp_path / name)
    assert_same(load_model("small-quickgelu", str(tmp_path / name), "cpu").model, models[True])


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_safetensors_by_any_name(models, state, tmp_path, name):
    save_file({f"module.{key}": value.contiguous() for key, value in state.items()}, tmp_path / name)
    assert_same(load_model("small-quickgelu", str(tmp_path / name), "cpu").model, models[True])


@pytest.mark.filterwarnings("ignore")  # torch's about TorchScript
@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("how", ["traced", "scripted", "whole model"])
def test_whole_models_tell_their_activation(models, tmp_path, how, quick):
    file = tmp_path / "model.pt"
    if how == "traced":
        traced(models[quick], file)
    elif how == "scripted":
        torch.jit.script(models[quick]).save(str(file))
    else:
        torch.save(models[quick], file)
    assert_same(load_model("small", str(file), "cpu").model, models[quick])
    wrong = "small-gelu" if quick else "small-quickgelu"
    with pytest.raises(ValueError, match=r"trained with .*GELU; give --model small"):
        load_model(wrong, str(file), "cpu")


# -------------------------------------------------------------------------------------------------------- activation


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["archive", "state dict", "module."])
@pytest.mark.parametrize("half", [False, True])
def test_openais_weights_get_quick_gelu(models, state, tmp_path, how, half):
    file = tmp_path / "ViT-B-16.pt"
    if how == "archive":
        traced(models[True], file, **OPENAIS)
    else:
        prefix = "module." if how == "module." else ""
        torch.save({f"{prefix}{n}": v.half() if half else v for n, v in (state | OPENAIS).items()}, file)
    assert read_weights(file).source == "OpenAI"
    model = load_model("small", str(file), "cpu").model
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    if not half:
        assert_same(model, models[True])
    with pytest.raises(ValueError, match="trained with QuickGELU; give --model small"):
        load_model("small-gelu", str(file), "cpu")


def test_an_unknown_activation_is_asked_for(models, state, tmp_path):
    file = tmp_path / "tuned.pt"
    torch.save(state, file)
    with pytest.raises(ValueError, match=r"does not say .*--model small-quickgelu .*or --model small-gelu") as caught:
        load_model("small", str(file), "cpu")
    assert "\n" not in str(caught.value)
    for name, quick in (("small-quickgelu", True), ("small-gelu", False)):
        loaded = load_model(name, str(file), "cpu")
        assert loaded.name == name
        assert_same(loaded.model, models[quick])


def test_an_architecture_with_one_activation_keeps_it(models, state, tmp_path):
    torch.save(state, tmp_path / "weights.pt")
    assert_same(load_model("tiny", str(tmp_path / "weights.pt"), "cpu").model, models[False])


def test_tags_have_the_activation_of_their_list(models, state, tmp_path, monkeypatch):
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "weights.safetensors")
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *a, **b: str(tmp_path / "weights.safetensors"))
    tags = {"quick": {"url": "x", "quick_gelu": True}, "plain": {"url": "x"}}
    for module in (open_clip.factory, open_clip.pretrained):
        monkeypatch.setattr(module, "get_pretrained_cfg", lambda model, tag: tags.get(tag, {}))
    for tag in tags:
        for name in ("small", "tiny"):
            assert_same(load_model(name, tag, "cpu").model, models[tag == "quick"])


def test_a_folder_with_another_activation_than_its_weights(state, tmp_path):
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    torch.save(state | OPENAIS, tmp_path / "model.pth")
    with pytest.raises(ValueError, match='set "quick_gelu": true in its "model_cfg"'):
        load_model(f"local-dir:{tmp_path}", None, "cpu")


# ------------------------------------------------------------------------------------------------------ Hugging Face


def hugging_face(folder: Path, activation: str, **saved):
    """A CLIP of transformers' with random weights, and its files."""
    transformers = pytest.importorskip("transformers")
    towers = {
        "text_config": {**HUGGING_FACE, "num_hidden_layers": 2, "hidden_act": activation, "eos_token_id": 2},
        "vision_config": HUGGING_FACE
        | {"num_hidden_layers": 1, "image_size": 16, "patch_size": 8, "hidden_act": activation},
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.CLIPModel(transformers.CLIPConfig(**towers, projection_dim=24)).eval()
        for p in model.parameters():
            p.data.add_(0.05 * torch.randn_like(p))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(("activation", "quick"), [("quick_gelu", True), ("gelu", False)])
@pytest.mark.parametrize("container", ["safetensors", "bin", "Lightning"])
def test_hugging_faces_clip(tmp_path, activation, quick, container):
    model = hugging_face(tmp_path, activation)
    file = tmp_path / "model.safetensors"
    if container != "safetensors":
        file = tmp_path / "pytorch_model.bin"
        wrap = lightning if container == "Lightning" else dict
        torch.save(wrap(model.state_dict() | {"text_model.embeddings.position_ids": torch.arange(77)[None]}), file)
    loaded = load_model("small", str(file), "cpu").model
    with torch.no_grad():
        text, image = model.get_text_features(TEXTS), model.get_image_features(IMAGES)
    for ours, theirs in ((loaded.encode_text(TEXTS), text), (loaded.encode_image(IMAGES), image)):
        theirs = getattr(theirs, "pooler_output", theirs)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="trained with"):
        load_model("small-gelu" if quick else "small-quickgelu", str(file), "cpu")
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="does not say"):
        load_model("small", str(file), "cpu")


def test_hugging_faces_pixels(tmp_path):
    hugging_face(tmp_path, "gelu")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    loaded = load_model("small", str(tmp_path / "model.safetensors"), "cpu")
    assert "mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)" in loaded.transform


def test_towers_with_different_activations(tmp_path):
    hugging_face(tmp_path, "gelu")
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "quick_gelu"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="towers have different activations"):
        load_model("small", str(tmp_path / "model.safetensors"), "cpu")


# ------------------------------------------------------------------------------------------------- what does not fit

REFUSED = {
    "no CLIP": (lambda state: {"fc.weight": torch.ones(2, 2)}, "holds no CLIP model, but 1 tensors such as fc.weight"),
    "no tensors": (lambda state: {"epoch": 3, "lr": 0.1}, "no CLIP model, but no tensors, but the entries epoch, lr"),
    "a list": (lambda state: [1, 2], "no CLIP model, but an object of type list"),
    "empty": (lambda state: {}, "no CLIP model, but an object of type"),
    "two models": (
        lambda state: {f"{whose}.{name}": value for whose in ("student", "ema") for name, value in state.items()},
        r"2 models, under 'student\.', 'ema\.'",
    ),
    "one tensor less": (
        lambda state: {name: value for name, value in state.items() if name != "visual.proj"},
        r"fit this architecture: 1 missing \(visual.proj\)",
    ),
    "one more": (lambda state: state | {"extra": torch.ones(1)}, r"fit this architecture: 1 unknown \(extra\)"),
    "another size": (
        lambda state: state | {"visual.positional_embedding": torch.ones(17, 32)},
        r"1 of another shape \(visual.positional_embedding is 17x32, the model's 5x32\)",
    ),
    "another model": (
        lambda state: {f"{name}.x" if "resblocks" in name else name: value for name, value in state.items()},
        r"fit this architecture: 36 missing \(.*\); 36 unknown",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_weights_that_do_not_fit(state, tmp_path, kind):
    make, message = REFUSED[kind]
    torch.save(make(state), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=message) as caught:
        load_model("tiny", str(tmp_path / "weights.pt"), "cpu")
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sizes", "names"),
    [
        ((768, 32, 50, 512, 512), "ViT-B-32 or ViT-B-32-quickgelu"),
        ((1024, 14, 577, 768, 768), "ViT-L-14-336 or ViT-L-14-336-quickgelu"),
        ((5, 4, 3, 2, 1), ""),
    ],
)
def test_weights_of_another_architecture_tell_which(models, state, sizes, names):
    width, patch, positions, text, embedding = sizes
    one = torch.zeros(1)
    other = {
        "visual.conv1.weight": one.expand(width, 3, patch, patch),
        "visual.positional_embedding": one.expand(positions, width),
        "text_projection": one.expand(text, embedding),
    }
    message = f"fit this architecture; give --model {names}: " if names else "fit this architecture: "
    with pytest.raises(ValueError, match=message):
        fill(models[True], state | other)


def test_pictures_of_weights_that_do_not_say(tmp_path, monkeypatch, caplog):
    """SigLIP's pixels are in [-1, 1]: all weights of the architecture agree. Those of ViT-L-14 do not."""
    from prograd_fast.clip.pretrained import Weights, transform_options

    siglip = transform_options("ViT-B-16-SigLIP", Weights({}, "open_clip"))
    assert siglip["image_mean"] == (0.5, 0.5, 0.5)
    assert siglip["image_resize_mode"] == "squash"
    with caplog.at_level(logging.WARNING):
        transform_options("ViT-B-32", Weights({}, "open_clip"))
        transform_options("ViT-L-14", Weights({}, "OpenAI"))
        assert not caplog.records
        assert not transform_options("ViT-L-14", Weights({}, "open_clip"))
    assert "pictures are prepared as for OpenAI's" in caplog.text
