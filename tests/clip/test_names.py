"""One cleaning for class names, words and templates; names that a tokenizer cannot tell apart are told."""

import logging

import open_clip
import pytest
import torch

import prograd_fast as pf
from prograd_fast.clip import tokens
from prograd_fast.clip.tokens import clean_words, equal_prompts, readable_class_names, refuse_equal_names
from prograd_fast.methods import LASP, CoOp, LinearProbe, ProGradCoOp, Task, ZeroShot
from tests.tiny_clip import TOKENIZER, tiny_clip

SPELLINGS = {  # of "café dog"
    "underscore": "café_dog",
    "blanks": "  café \t dog\n",
    "composed": "cafe\u0301 dog",
    "HTML": "caf&eacute; dog",
    "HTML twice": "caf&amp;eacute; dog",
    "HTML in full width": "caf＆eacute； dog",
    "full width": "ｃａｆé　ｄｏｇ",
    "non-breaking": "café\u00a0dog",
    "HTML underscore": "café&#95;dog",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_cleaning(spelling):
    assert clean_words(SPELLINGS[spelling]) == "café dog"
    assert equal_prompts(TOKENIZER, ["café dog", "cat", SPELLINGS[spelling]]) == [(0, 2)]


@pytest.mark.parametrize(
    "text", ["a photo of a {}.", "Dog", "St. Bernard's", "x²", "½", "a < b", "R&B", "日本", "naïve"]
)
def test_what_is_clean_stays(text):
    assert clean_words(text) == text


@pytest.mark.parametrize(
    "words",
    ["a_photo_of_a", "_a photo_of a_", "a  photo of\ta", "ａ photo of a", "a&nbsp;photo of a", " a photo of a "],
)
def test_student_and_teacher_have_the_same_words(words):
    """CoOp's spelling of its words."""
    model = tiny_clip()
    for template in (f"{words} {{}}.", f"{words}_{{}}."):
        teacher = pf.clip.ZeroShotTeacher(model, TOKENIZER, ["cat", "red_panda"], template)
        net = pf.clip.PromptedCLIP(model, TOKENIZER, ["cat", "red_panda"], None, words)
        torch.testing.assert_close(net.class_features(), teacher.class_features)
    plain = pf.clip.PromptedCLIP(model, TOKENIZER, ["cat", "red_panda"], None, "a photo of a")
    assert torch.equal(plain.class_features(), net.class_features())


@pytest.mark.parametrize("words", ["a photo of a", "a_photo_of_a"])
def test_the_teacher_of_a_method(words):
    model = tiny_clip(dtype=torch.float32)
    learner = ProGradCoOp(ctx_init=words).start(Task.without_pictures(model, TOKENIZER, ["cat", "red_panda"]))
    torch.testing.assert_close(learner.net.class_features(), learner.teacher.class_features)


EQUAL = {
    "case": ["Dog", "cat", "dog"],
    "blanks": ["polar  bear", "cat", "polar bear"],
    "underscore": ["polar_bear", "cat", "polar bear"],
    "NFC and NFD": ["caf\u00e9", "cat", "cafe\u0301"],
    "HTML": ["cats &amp; dogs", "cat", "cats & dogs"],
    "full width": ["Ｄog", "cat", "dog"],
    "quotes": ["St. Bernard\u2019s", "cat", "St. Bernard's"],
    "ligature": ["\ufb01nch", "cat", "finch"],
    "the same": ["dog", "cat", "dog"],
}


@pytest.mark.parametrize("kind", EQUAL)
def test_names_with_equal_tokens(kind, tmp_path):
    names = EQUAL[kind]
    assert equal_prompts(TOKENIZER, names) == [(0, 2)]
    with pytest.raises(ValueError, match="would never be predicted") as caught:
        refuse_equal_names(TOKENIZER, names, tmp_path)
    for part in (repr(names[0]), repr(names[2]), str(tmp_path)):
        assert part in str(caught.value)


def test_the_tokenizer_decides():
    """SigLIP's has no punctuation: open_clip cleans that way before it tokenises."""
    siglip = open_clip.SimpleTokenizer(clean="canonicalize")
    assert equal_prompts(siglip, ["St. Bernard", "St Bernard", "cat"]) == [(0, 1)]
    assert not equal_prompts(TOKENIZER, ["St. Bernard", "St Bernard", "cat"])
    refuse_equal_names(TOKENIZER, ["St. Bernard", "St Bernard", "cat"], "folder")


def test_three_of_a_kind_and_very_long_names():
    assert equal_prompts(TOKENIZER, ["a", "b", "A", "a ", "B"]) == [(0, 2), (0, 3), (1, 4)]
    assert equal_prompts(TOKENIZER, ["a" * 100_000, "b"]) == []


def test_imagenets_own_list(caplog):
    """ "missile" and "sunglasses" are there twice: allowed, with one line in the log, whoever looks at the names."""
    names = open_clip.IMAGENET_CLASSNAMES
    assert [names[i] for i, _ in equal_prompts(TOKENIZER, names)] == ["missile", "sunglasses"]
    assert len(readable_class_names(names)) == 1000
    model = tiny_clip(dtype=torch.float32, layers=1)
    tokens._say_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        net = pf.clip.PromptedCLIP(model, TOKENIZER, names, None, "a photo of a")
        teacher = pf.clip.ZeroShotTeacher(model, TOKENIZER, names, "a photo of a {}.")
        net.with_classes(names)
    assert len([record for record in caplog.records if "same words" in record.message]) == 1
    features = net.class_features()
    torch.testing.assert_close(features, teacher.class_features)
    first, second = (i for i, name in enumerate(names) if name == "missile")
    torch.testing.assert_close(features[first], features[second])


@pytest.mark.parametrize(
    "method", [ZeroShot(), CoOp(), ProGradCoOp(), LASP(virtual_classes=("owl", "dog")), LinearProbe()]
)
def test_methods_take_equal_names(method):
    """One logit per class, as many as there are names."""
    model = tiny_clip(dtype=torch.float32)
    names = ["dog", "cat", "dog", "emu"]
    x = torch.nn.functional.normalize(torch.randn(8, 24, generator=torch.Generator().manual_seed(0)), dim=-1)
    labels = torch.arange(8) % 4
    learner = method.start(Task(model, TOKENIZER, names, x, labels))
    if hasattr(learner, "losses"):
        assert learner.losses(x, labels).task.isfinite()
    assert learner.scores(names)(x).shape == (8, 4)
