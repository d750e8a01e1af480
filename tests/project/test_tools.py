"""The scripts that build the embedded assets: what could go wrong unseen, checked without a download."""

import json
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from sklearn.linear_model import Ridge

from tests.tiny_clip import TOKENIZER, tiny_clip
from tests.tolerances import assert_close
from tools import export, fetch, head
from tools.archive import Picture, write_archive
from tools.augment import augment
from tools.build_clipart import draw, near_equals_dropped, series
from tools.build_drawings import Drawing, HeldOut, icon_drawings, near_equals_of
from tools.build_emoji import Style, slug
from tools.classes import EMOJI_CLASSES
from tools.emojis import PRETRAINING, Emoji, read_emojibase, split_groups, stem
from tools.features import Features
from tools.phrases import Phrases
from tools.pretrain import TrainedTokens, encode, encode_by_length, rate, text_loss

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


# one emoji with a class, one without, and an icon
SHOWN_EMOJIS = [DANCER, Emoji("1f6d1", "stop", ("octagonal",), "stop", "", PRETRAINING)]
SHOWN = [Drawing("noto", 0, DANCER.name, ()), Drawing("noto", 1, "stop", ()), Drawing("mdi", None, "anvil", ("smith",))]
SAID = ["woman dancing", "woman dancing, dance, flamenco", "dance", "flamenco", "fantasy creature"]
SAID += ["stop", "stop, octagonal", "octagonal", "anvil", "anvil, smith"]


def said_phrases() -> Phrases:
    """The phrases of these drawings, each with a target of its own."""
    phrases = Phrases(SAID, [""] * len(SAID), torch.empty(0), torch.empty(0), torch.empty(0))
    phrases.__dict__["targets"] = torch.eye(len(SAID))
    return phrases


@pytest.mark.parametrize("named", [False, True])
def test_what_is_said_of_a_drawing(named):
    """The class name only when asked, and only of an emoji that has one."""
    phrases = said_phrases()
    shares = [
        dict(zip(SAID, head.said_of(drawing, SHOWN_EMOJIS, phrases, named).tolist(), strict=True)) for drawing in SHOWN
    ]
    words = {"woman dancing": 0.3, "woman dancing, dance, flamenco": 0.55, "dance": 0.075, "flamenco": 0.075}
    dancer = {text: 0.55 * share for text, share in words.items()} | {"fantasy creature": 0.45} if named else words
    stop = {"stop": 0.3, "stop, octagonal": 0.55, "octagonal": 0.15}
    for found, expected in zip(shares, (dancer, stop, {"anvil": 0.5, "anvil, smith": 0.5}), strict=True):
        assert found == pytest.approx(dict.fromkeys(SAID, 0.0) | expected)


def test_heads_are_ridge_regressions_of_all_views(monkeypatch):
    """As scikit-learn has it; the views of a drawing follow each other by view, and each has its drawing's target."""
    random = np.random.RandomState(0)
    n_views, emojis_shown, icons_shown = 3, SHOWN[:2] * 20, SHOWN[2:] * 30
    of_emojis = torch.from_numpy(random.randn(n_views, len(emojis_shown), 6) * [1, 2, 3, 4, 5, 0.01]).half()
    of_icons = torch.from_numpy(random.randn(1, len(icons_shown), 6) + 1).half()
    features = Features(of_emojis, of_icons, torch.empty(0), torch.empty(0))
    monkeypatch.setattr(head.Features, "load", lambda: features)
    monkeypatch.setattr(head.Phrases, "load", said_phrases)
    monkeypatch.setattr(head.emojis, "load", lambda: SHOWN_EMOJIS)
    monkeypatch.setattr(head, "load_drawings", lambda: (None, [*emojis_shown, *icons_shown]))
    monkeypatch.setattr(head, "ROWS", 64)  # several chunks, the last one smaller
    heads = head.fit_heads()

    x = torch.cat([of_emojis.flatten(0, 1), of_icons[0]]).double().numpy()
    deviation = x.std(0)
    deviation += 1e-3 * deviation.mean()
    shown = [*emojis_shown * n_views, *icons_shown]
    for name in ("emoji-lite", "emoji-lite-named"):
        phrases = said_phrases()
        y = torch.stack([head.said_of(drawing, SHOWN_EMOJIS, phrases, name.endswith("named")) for drawing in shown])
        model = Ridge(alpha=head.RIDGE * len(x)).fit((x - x.mean(0)) / deviation, (y - y.mean(0)).double().numpy())
        weight = model.coef_ / deviation
        assert_close(heads[name]["weight"], weight, "formula", torch.float32)
        assert_close(heads[name]["bias"], -weight @ x.mean(0), "formula", torch.float32)


def test_the_scale_is_the_likeliest(monkeypatch):
    """Cosines of 1 to the own phrase and 0 to the two others: a right one of three in four asks for log(2 · 3)."""
    phrases = said_phrases()
    wanted = torch.eye(len(SAID))[[phrases.index[text] for text in (SAID[1], SAID[6], SAID[9])]]
    shown = [drawing for drawing in SHOWN for _ in range(4)]
    rows = wanted.repeat_interleave(4, 0)
    rows[[0, 4, 8]] = wanted[[1, 2, 0]]  # one in four shows something else
    features = Features(rows[None, :8].half(), rows[None, 8:].half(), torch.empty(0), torch.empty(0))
    monkeypatch.setattr(head.Features, "load", lambda: features)
    monkeypatch.setattr(head.Phrases, "load", lambda: phrases)
    monkeypatch.setattr(head.emojis, "load", lambda: SHOWN_EMOJIS)
    monkeypatch.setattr(head, "load_drawings", lambda: (None, shown))
    monkeypatch.setattr(head, "EVERY", 1)
    monkeypatch.setattr(head, "SCALES", torch.arange(0, 4, 0.1))
    found = head.fit_scale({"weight": torch.eye(len(SAID)), "bias": torch.zeros(len(SAID))})
    assert found == pytest.approx(np.log(6), abs=0.05)


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


HELD_OUT = [Emoji("1f42c", "dolphin", (), "dolphin", "sea animal", "test"), DANCER]


@pytest.mark.parametrize(
    ("name", "held_out"),
    [
        ("dolphin", True),
        ("dolphins-jumping", True),
        ("dol phin", True),  # as one word
        ("dancing", False),  # a pretraining emoji's
        ("dolphinarium", False),
    ],
)
def test_names_of_held_out_emojis(name, held_out):
    assert HeldOut(HELD_OUT).names(name) == held_out


def test_icons_are_things_that_no_held_out_emoji_is(tmp_path):
    names = ["anvil-filled", "anvil-outline", "dolphin", "arrow-left", "flipper", "hidden-anchor", "user-2-box"]
    icons = {name: {"body": f"<{name}/>"} for name in names}
    icons["hidden-anchor"]["hidden"] = True
    aliases = {"smiths-tool": {"parent": "anvil-filled"}, "dolphin-fin": {"parent": "flipper"}}
    (tmp_path / "icons.json").write_text(json.dumps({"icons": icons, "aliases": aliases}))
    (tmp_path / "metadata.json").write_text(json.dumps({"categories": {"Forge & Fire": ["anvil-filled"]}}))
    found = list(icon_drawings("mdi", tmp_path, HeldOut(HELD_OUT)))
    assert [drawing for drawing, _ in found] == [Drawing("mdi", None, "anvil", ("smiths tool", "forge and fire"))]
    assert "<anvil-filled/>" in found[0][1]


def test_near_equals_of_other_pictures():
    """Brighter, grey and negative copies are equal; another picture is not."""
    noise = np.random.RandomState(1).randint(0, 200, (2, 16, 16, 3)).repeat(4, 1).repeat(4, 2).astype(np.uint8)
    grey = noise[0].mean(2, keepdims=True).repeat(3, 2).astype(np.uint8)
    pictures = np.stack([noise[0] + np.uint8(20), grey, 255 - noise[0], noise[1]])
    assert near_equals_of(pictures, noise[:1]).tolist() == [True, True, True, False]


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
    assert views[0].shape == (4, 3, 128, 128)
    assert views[0].abs().max() <= 1
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])


def test_short_encoding_is_open_clips():
    """Pretraining cuts the padding off, which a causal tower that pools at the end of text does not notice."""
    model = tiny_clip()
    tokens = TOKENIZER(["a cat", "an emoji of a very long dachshund, dog, long"])
    with torch.no_grad():
        assert_close(encode(model, tokens[:, :16]), model.encode_text(tokens, normalize=True), "formula", torch.float64)


def test_encoding_by_length_is_the_same_in_another_order():
    model = tiny_clip()
    texts = ["a cat", "an emoji of a very long dachshund, dog, long", "cat", "two cats", "a cat."]
    rows = [[TOKENIZER.sot_token_id, *TOKENIZER.encode(text), TOKENIZER.eot_token_id] for text in texts]
    with torch.no_grad():
        found, order = encode_by_length(model, rows)
        expected = model.encode_text(TOKENIZER([texts[i] for i in order]), normalize=True)
    assert sorted(order) == list(range(5))
    assert_close(found, expected, "formula", torch.float64)


def test_trained_tokens_are_rows_of_the_table():
    ids, rows = torch.tensor([3, 7, 49]), torch.randn(3, 4)
    tokens = torch.tensor([[3, 7, 49], [49, 3, 3]])
    assert torch.equal(TrainedTokens(ids, rows, 50)(tokens), rows[torch.tensor([[0, 1, 2], [2, 0, 0]])])


def unit_rows(n: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_text_loss_is_least_at_the_targets():
    """In whatever direction the features move, and however little."""
    targets = unit_rows(5, 0).double()
    least = text_loss(targets, targets)
    for seed, step in ((1, 1e-3), (2, 1e-1), (3, 10.0)):
        assert text_loss(F.normalize(targets + step * unit_rows(5, seed), dim=-1), targets) > least


def test_learning_rate_warms_up_and_ends_near_zero():
    rates = [rate(step, 690, 100) for step in range(690)]
    assert rates[0] < 0.011 * max(rates)
    assert rates[-1] < 1e-5


def test_export_takes_the_better_tower_and_refuses_untrained_names(tmp_path, monkeypatch):
    """Of three towers, each of another accuracy on two held-out pictures; the tokens that were never read stay away."""
    ids, classes = torch.tensor([7, 8, 9]), len(EMOJI_CLASSES)
    held_out = Features(torch.empty(0), torch.empty(0), torch.eye(2), torch.tensor([0, 1]))
    records = [replace(DANCER, class_name=name) for name in list(EMOJI_CLASSES)[:2]]
    monkeypatch.setattr(export, "RUNS", tmp_path)
    monkeypatch.setattr(export, "ASSETS", tmp_path)
    monkeypatch.setattr(export.Features, "load", lambda: held_out)
    monkeypatch.setattr(export.Phrases, "load", lambda: Phrases([], [], torch.empty(0), ids, torch.empty(0)))
    monkeypatch.setattr(export.emojis, "load", lambda: records)
    heads = {name: {"weight": torch.eye(2), "bias": torch.zeros(2)} for name in ("emoji-lite", "emoji-lite-named")}
    monkeypatch.setattr(export, "fit_heads", lambda: heads)
    monkeypatch.setattr(export, "fit_scale", lambda head: 20.0)
    monkeypatch.setattr(export, "class_features", lambda state, phrases: state["classes"])

    def save(seed: int, right: int, count: int) -> None:
        rows = torch.zeros(classes, 2)
        rows[:2] = torch.eye(2) if right == 2 else torch.ones(2, 2)
        counts = torch.full((49408,), count)
        counts[8] = 0
        state = {"classes": rows, "token_embedding.rows": torch.arange(3.0)[:, None] + 10 * seed}
        torch.save((state, counts), tmp_path / f"text-seed{seed}.pt")

    save(0, 1, 10)
    save(1, 2, 10)
    export.export()
    stored = load_file(tmp_path / "emoji-lite.safetensors")
    assert stored["token_embedding.ids"].tolist() == [7, 9]
    assert stored["token_embedding.rows"].tolist() == [[10], [12]]
    assert stored["visual.head.proj.weight"].dtype == torch.float16
    assert stored["logit_scale"].item() == pytest.approx(np.log(20), rel=1e-3)
    open_clip.add_model_config(tmp_path / "emoji-lite.json")
    save(2, 2, 9)
    with pytest.raises(ValueError, match=r"text-seed2\.pt: class names with a hardly trained token: .*'mammal': 9"):
        export.export()
