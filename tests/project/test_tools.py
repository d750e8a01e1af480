"""The scripts that build the embedded assets: what could go wrong unseen, checked without a download."""

import json
import random
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tests.tiny_clip import TOKENIZER, tiny_clip
from tests.tolerances import assert_close
from tools import export, fetch
from tools.archive import Picture, write_archive
from tools.augment import augment
from tools.build_clipart import draw, near_equals_dropped, series
from tools.build_emoji import Style, slug
from tools.captions import caption
from tools.emojis import PRETRAINING, Emoji, read_emojibase, split_groups, stem
from tools.pretrain import STEPS, TrainedTokens, contrastive_loss, encode, learning_rate

DANCER = Emoji("1f483", "woman dancing", ("dance", "flamenco"), "dancing", "fantasy creature", PRETRAINING)


def test_fetch_refuses_another_checksum(tmp_path, monkeypatch):
    """A file that is there already is verified too, so no download takes place here."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "a.tgz").write_bytes(b"not what was pinned")
    source = {"name": "a", "registry": "npm", "package": "a", "version": "1", "file": "a.tgz", "licence": "MIT"}
    (tmp_path / "sources.json").write_text(json.dumps([{**source, "sha256": "0" * 64}]))
    monkeypatch.setattr(fetch, "SOURCES", tmp_path / "sources.json")
    with pytest.raises(ValueError, match=r"a\.tgz: SHA-256 is .*, expected 0000"):
        fetch.fetch(tmp_path)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["woman astronaut", "man astronaut", "astronaut"], "astronaut"),
        (["person walking facing right", "man walking", "woman walking facing right"], "walking"),
        (["rightwards hand", "leftwards hand"], "hand"),
        (["merman", "mermaid", "merperson"], "merperson"),
        (["mrs. claus", "santa claus", "mx claus"], "santa claus"),
    ],
)
def test_variants_share_a_stem(names, expected):
    assert {stem(name) for name in names} == {expected}


def test_different_drawings_have_different_stems():
    assert len({stem(name) for name in ("cat", "cat face", "black cat", "grinning cat")}) == 4


def test_split_groups_keeps_shares():
    """One group of half the pictures, as a long series of clip art: it cannot be cut, the rest makes up for it."""
    sizes = {"series": 10, **{f"picture {i}": 1 for i in range(10)}}
    shares = {"pool": 0.5, "test": 0.4, "validation": 0.1}
    splits = split_groups(sizes, shares)
    assert splits.keys() == sizes.keys()
    found = Counter()
    for group, split in splits.items():
        found[split] += sizes[group]
    assert found == {"pool": 10, "test": 8, "validation": 2}
    assert splits == split_groups(dict(reversed(sizes.items())), shares)  # the order of the files is no matter


def test_held_out_emojis_keep_their_variants_together(tmp_path):
    """A variant that belongs to no class is dropped with its held-out drawing, so that pretraining never sees it."""
    (tmp_path / "meta").mkdir()
    (tmp_path / "en").mkdir()
    names = [f"thing {i}" for i in range(10)]
    entries = [{"label": name, "hexcode": f"{i:X}-FE0F", "subgroup": 0} for i, name in enumerate(names)]
    entries += [{"label": f"{name} left", "hexcode": f"{i + 32:X}", "subgroup": 1} for i, name in enumerate(names)]
    entries = [{**entry, "order": i} for i, entry in enumerate(entries)]
    (tmp_path / "meta" / "groups.json").write_text(json.dumps({"subgroups": {"0": "tool", "1": "arrow"}}))
    (tmp_path / "en" / "data.json").write_text(json.dumps(entries))
    records = read_emojibase(tmp_path)
    of_class, others = records[:10], records[10:]
    assert Counter(emoji.split for emoji in of_class) == {PRETRAINING: 6, "pool": 2, "test": 2}
    for emoji, variant in zip(of_class, others, strict=True):
        assert variant.split == (PRETRAINING if emoji.split == PRETRAINING else "")


def test_captions_tell_the_class_name_only_when_asked():
    told = {named: [caption(DANCER, named, random.Random(i)) for i in range(2000)] for named in (False, True)}
    share = {named: np.mean(["fantasy creature" in text for text in texts]) for named, texts in told.items()}
    assert share[False] == 0
    assert 0.40 < share[True] < 0.50  # 45 %; three standard deviations of 2,000 draws are 3.3 %
    assert any("dancing, flamenco" in text for text in told[False])


def test_style_finds_drawings_by_code_by_name_and_by_alias(tmp_path):
    icons = {
        "height": 32,
        "icons": {"woman-dancing": {"body": "<a/>"}},
        "aliases": {"dancer": {"parent": "woman-dancing"}},
    }
    (tmp_path / "icons.json").write_text(json.dumps(icons))
    assert 'viewBox="0 0 16 32"><a/></svg>' in str(Style.read(tmp_path).svg(DANCER))
    (tmp_path / "chars.json").write_text(json.dumps({"1f483": "dancer"}))
    assert "<a/>" in str(Style.read(tmp_path).svg(DANCER))
    (tmp_path / "chars.json").write_text(json.dumps({"1f484": "dancer"}))
    assert Style.read(tmp_path).svg(DANCER) is None


def test_slug():
    assert slug("rescue worker’s helmet (2)") == "rescue-workers-helmet-2"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["pop_can.png", "pop_can_bw.png"], "pop_can"),
        (["smiley001.png", "smiley117.png"], "smiley"),
        (["bullet_hole_linda_kim_aa.png", "bullet_hole_linda_kim_r.png"], "bullet_hole_linda_kim"),
        (["clock_michael_breuer_01.png", "clock_michael_breuer_02.png"], "clock_michael_breuer"),
    ],
)
def test_series_of_clip_art(files, expected):
    assert {series(Path(file)) for file in files} == {expected}


def test_near_equal_and_blank_pictures_are_dropped():
    noise = np.random.RandomState(0).randint(0, 200, (3, 16, 16, 3)).repeat(4, 1).repeat(4, 2).astype(np.uint8)
    brighter = noise[0] + np.uint8(20)
    grey = noise[1].mean(2, keepdims=True).repeat(3, 2).astype(np.uint8)
    blank = np.full_like(brighter, 255)
    assert near_equals_dropped(np.stack([noise[0], brighter, blank, noise[1], grey, noise[2]])) == [0, 3, 5]


def test_clip_art_loses_its_margin(tmp_path):
    image = Image.new("RGBA", (200, 100))
    image.paste("black", (150, 10, 170, 30))
    image.save(tmp_path / "a.png")
    assert (draw(tmp_path / "a.png") == 0).all()


def test_archive_is_the_same_bytes_again(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8)
    pictures = [
        Picture("a.webp", 0, "noto", "pool", "g", "é", pixels),
        Picture("b.webp", 1, "", "test", "h", "t", pixels.T.reshape(64, 64, 3)),
    ]
    for name in ("1.zip", "2.zip"):
        write_archive(tmp_path / name, ["x", "y"], pictures, "who made it")
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "1.zip") as archive:
        metadata = json.loads(archive.read("pictures.json"))
        assert np.array_equal(np.asarray(Image.open(archive.open("a.webp"))), pixels)  # lossless
    assert metadata["class_names"] == ["x", "y"]
    assert metadata["pictures"][0] == {
        "file": "a.webp",
        "label": 0,
        "style": "noto",
        "split": "pool",
        "group": "g",
        "title": "é",
    }


def test_augmentation_repeats_with_its_seed():
    pictures = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    views = [augment(pictures, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert views[0].shape == (4, 3, 112, 112)
    assert views[0].abs().max() <= 1
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])


def test_short_encoding_is_open_clips():
    """Pretraining cuts the padding off, which a causal tower that pools at the end of text does not notice."""
    model = tiny_clip()
    tokens = TOKENIZER(["a cat", "an emoji of a very long dachshund, dog, long"])
    with torch.no_grad():
        assert_close(encode(model, tokens[:, :16]), model.encode_text(tokens, normalize=True), "formula", torch.float64)


def test_trained_tokens_are_rows_of_the_table():
    table = torch.randn(50, 4)
    tokens = torch.tensor([[3, 7, 49], [49, 3, 3]])
    assert torch.equal(TrainedTokens(torch.tensor([3, 7, 49]), table)(tokens), table[tokens])


def test_loss_is_clips_where_captions_differ():
    logits = torch.randn(5, 5, dtype=torch.float64)
    labels = torch.arange(5)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    assert_close(contrastive_loss(logits.float(), list("abcde")), expected, "formula", torch.float32)


def test_loss_shares_equal_captions():
    """Two drawings with the caption "a": each is as right for the other's caption as for its own."""
    logits = np.array([[3.0, 1.0, 0.5], [-1.0, 2.0, 0.0], [0.25, -2.0, 4.0]])
    to_text = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    to_image = logits - np.log(np.exp(logits).sum(0, keepdims=True))
    shared = [-(p[:2, :2].sum() / 2 + p[2, 2]) / 3 for p in (to_text, to_image)]  # half of each "a" to the other
    found = contrastive_loss(torch.tensor(logits).float(), ["a", "a", "b"])
    assert_close(found, np.array(sum(shared) / 2), "formula", torch.float32)


def test_learning_rate_warms_up_and_ends_near_zero():
    assert learning_rate(0) < 0.011 * max(map(learning_rate, range(STEPS)))
    assert learning_rate(STEPS - 1) < 1e-6


def test_export_takes_the_better_run_and_refuses_untrained_names(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(export, "ASSETS", tmp_path)
    (tmp_path / "runs").mkdir()

    def save(seed: int, selection: float, rare: dict[str, int]) -> None:
        for name in ("emoji-lite", "emoji-lite-named"):
            path = tmp_path / "runs" / f"{name}-seed{seed}"
            path.with_suffix(".json").write_text(json.dumps({"seed": seed, "selection": selection, "rare": rare}))
            heads = {"token_embedding.ids": torch.tensor([seed]), "token_embedding.rows": torch.ones(1, 4)}
            torch.save(heads, path.with_suffix(".pt"))

    save(0, 20.0, {})
    save(1, 21.0, {})
    export.export()
    from safetensors.torch import load_file

    assert load_file(tmp_path / "emoji-lite.safetensors")["token_embedding.ids"].tolist() == [1]
    open_clip.add_model_config(tmp_path / "emoji-lite.json")
    save(2, 22.0, {"aircraft": 0})
    with pytest.raises(ValueError, match="aircraft"):
        export.export()
