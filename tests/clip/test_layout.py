"""Guards the token layout of prompts, for OpenAI's vocabulary and one without a start token, and refusals."""

import pytest
import torch
from open_clip.model import CustomTextCLIP

import prograd_fast as pf
from tests.tiny_clip import TOKENIZER, tiny_clip


@pytest.fixture(scope="module")
def model():
    return tiny_clip()


def text_of(net, row):
    """The prompt's tokens as words: SOS and EOT as < and >."""
    ids = net.encoder.token_ids[row].tolist()
    words = {TOKENIZER.sot_token_id: "<", TOKENIZER.eot_token_id: ">", 0: ""}
    return " ".join(words.get(i) or TOKENIZER.decode([i]).strip() for i in ids if i)


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        ("end", "< x a photo of a red panda . >"),
        ("middle", "< x a red panda photo of a . >"),  # 5 // 2 tokens before the name
        ("front", "< red panda x a photo of a . >"),
    ],
)
def test_positions(model, position, expected):
    names = ["red_panda", "cat"]  # two tokens and one: the shorter prompt is padded behind its end of text
    net = pf.clip.PromptedCLIP(model, TOKENIZER, names, 5, "a photo of a", class_token_position=position)
    assert text_of(net, 0) == expected
    assert text_of(net, 1) == expected.replace("red panda", "cat")
    assert net.encoder.token_ids.shape == (2, 10)


def test_a_names_own_full_stop(model):
    """ "etc." + "." is one token "..": CoOp counts the name alone (2 tokens), so that the context follows the ".."."""
    net = pf.clip.PromptedCLIP(model, TOKENIZER, ["etc."], 1, class_token_position="front")
    assert text_of(net, 0) == "< etc .. x >"


def word_tokenizer(texts):
    """A SentencePiece-like vocabulary: no start of text, end of text and padding are both 1, words from 2 on."""
    words = ["x", "a", "photo", "of", "cat", "red", "panda", "."]
    rows = [[2 + words.index(w) for w in t.lower().replace(".", " .").split()] for t in texts]
    return torch.tensor([row + [1] * (16 - len(row)) for row in rows])


def test_vocabulary_without_start_of_text():
    """SigLIP's: the context stands at the very front, and the tower reads every position."""
    model = tiny_clip(CustomTextCLIP, context_length=16, vocab_size=32, no_causal_mask=True, pool_type="last")
    net = pf.clip.PromptedCLIP(model, word_tokenizer, ["red panda", "cat"], None, "a photo of a")
    expected = word_tokenizer(["a photo of a red panda.", "a photo of a cat."])
    assert torch.equal(net.encoder.token_ids, expected)
    assert net.encoder.context_positions.tolist() == [[0, 1, 2, 3]] * 2


LONG = "very " * 80


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        ([], ValueError, "got an empty list"),
        ("cat", TypeError, "got one string, 'cat'"),
        (["cat", None], TypeError, r"class_names\[1\].*NoneType"),
        (["cat", " _ "], ValueError, r"class_names\[1\].*' _ '"),
        (["cat", "&nbsp;"], ValueError, r"class_names\[1\].*'&nbsp;'"),  # HTML for a blank
        (["cat", "\ufeff"], ValueError, "has no tokens"),  # open_clip's tokenizer drops it
        (["cat", LONG], ValueError, "'very very.*too long.*16 context tokens.*77 positions.*lower n_ctx"),
    ],
    ids=["none", "one string", "not a string", "blank", "HTML", "unreadable", "too long"],
)
def test_names_that_do_not_fit(model, names, error, message):
    with pytest.raises(error, match=message):
        pf.clip.PromptedCLIP(model, TOKENIZER, names)


def test_longest_name_that_fits(model):
    """77 positions: SOS, 4 context tokens, 70 words, full stop, EOT; with one word more the name is refused by name."""
    name = "very " * 69 + "cat"
    assert pf.clip.PromptedCLIP(model, TOKENIZER, [name], 4).encoder.token_ids.shape[1] == 77
    with pytest.raises(ValueError, match="too long"):
        pf.clip.PromptedCLIP(model, TOKENIZER, ["very " + name], 4)


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (lambda texts: TOKENIZER(texts, context_length=64), r"\(\d+, 77\).*\(\d+, 64\)"),
        (lambda texts: TOKENIZER(texts) * 10, "below 49408.*id 494070"),
        (lambda texts: [[1, 2]], "got list"),
    ],
    ids=["other length", "other vocabulary", "no tensor"],
)
def test_tokenizer_of_another_model(model, tokenizer, message):
    with pytest.raises(ValueError, match=message + r".*open_clip\.get_tokenizer"):
        pf.clip.PromptedCLIP(model, tokenizer, ["cat"])


def test_unknown_position(model):
    with pytest.raises(ValueError, match="'end', 'middle' or 'front', got 'back'"):
        pf.clip.PromptedCLIP(model, TOKENIZER, ["cat"], class_token_position="back")
