"""Guards the zero-shot teacher: equal to the model's own encode_text."""

import pytest
import torch
from open_clip.model import CustomTextCLIP
from torch.nn import functional as F

import prograd_fast as pf
from prograd_fast.clip import teacher as teacher_module
from tests.tiny_clip import CLASS_NAMES, TOKENIZER, tiny_clip
from tests.tolerances import assert_close

TEMPLATES = ["a photo of a {}.", "{} in a video game.", "a bad drawing of the {}."]
IMAGES = torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    return tiny_clip(CustomTextCLIP, init_logit_bias=-10.0)


def features(model, template):
    sentences = [template.replace("{}", name.replace("_", " ")) for name in CLASS_NAMES]
    return model.encode_text(TOKENIZER(sentences), normalize=True)


def test_one_template(model):
    """A string and a list of one are the same; logits are the model's, bias included, and carry no graph."""
    teacher = pf.clip.ZeroShotTeacher(model, TOKENIZER, CLASS_NAMES, TEMPLATES[0])
    assert_close(teacher.class_features, features(model, TEMPLATES[0]), "formula", torch.float64)
    listed = pf.clip.ZeroShotTeacher(model, TOKENIZER, CLASS_NAMES, TEMPLATES[:1])
    assert_close(listed.class_features, teacher.class_features, "formula", torch.float64)
    images = model.encode_image(IMAGES, normalize=True)
    sentences = TOKENIZER([f"a photo of a {name}." for name in teacher.class_names])
    logits = teacher.logits(images)
    assert_close(logits, model.get_logits(IMAGES, sentences)[0], "formula", torch.float64)
    assert not logits.requires_grad


def test_many_templates(model):
    """Mean of the unit features of each template, normalised again: not the mean of the raw ones."""
    teacher = pf.clip.ZeroShotTeacher(model, TOKENIZER, CLASS_NAMES, TEMPLATES)
    expected = F.normalize(sum(features(model, t) for t in TEMPLATES) / len(TEMPLATES), dim=-1)
    assert_close(teacher.class_features, expected, "formula", torch.float64)


def test_prompts_in_portions(model, monkeypatch):
    """More prompts than are encoded at once; the last portion is smaller."""
    monkeypatch.setattr(teacher_module, "_PROMPTS_AT_ONCE", 2)
    teacher = pf.clip.ZeroShotTeacher(model, TOKENIZER, CLASS_NAMES, TEMPLATES[0])
    assert_close(teacher.class_features, features(model, TEMPLATES[0]), "formula", torch.float64)


def test_nothing_to_train_or_save(model):
    teacher = pf.clip.ZeroShotTeacher(model, TOKENIZER, CLASS_NAMES, TEMPLATES[0])
    assert not list(teacher.parameters())
    assert not teacher.state_dict()
    assert teacher.float().class_features.dtype == torch.float32


@pytest.mark.parametrize(
    ("templates", "error", "message"),
    [
        ([], ValueError, "got none"),
        ("a photo", ValueError, "exactly one {}.*'a photo'"),
        (["{} and {}"], ValueError, "exactly one {}"),
        ([None], TypeError, "got None"),
        ("very " * 80 + "{}.", ValueError, "too long.*77 positions. Shorten it"),
    ],
)
def test_templates_that_do_not_fit(model, templates, error, message):
    with pytest.raises(error, match=message):
        pf.clip.ZeroShotTeacher(model, TOKENIZER, CLASS_NAMES, templates)


def test_kept_texts_are_encoded_once(model, monkeypatch):
    """Other names and other templates are others; behind the block everything is encoded again."""
    encoded = []
    every = teacher_module._text_features

    def counted(tower, tokenizer, names, template, group):
        encoded.append(template)
        return every(tower, tokenizer, names, template, group)

    monkeypatch.setattr(teacher_module, "_text_features", counted)
    plain = pf.clip.ZeroShotTeacher(model, TOKENIZER, CLASS_NAMES, TEMPLATES).class_features
    assert encoded == TEMPLATES
    encoded.clear()
    kept = {}
    for _ in range(2):  # a later block goes on
        with pf.clip.keep_texts(kept):
            for _ in range(2):
                teacher = pf.clip.ZeroShotTeacher(model, TOKENIZER, CLASS_NAMES, TEMPLATES)
                assert torch.equal(teacher.class_features, plain)
                pf.clip.ZeroShotTeacher(model, TOKENIZER, CLASS_NAMES[:2], TEMPLATES[0])
                each = pf.clip.template_features(model, TOKENIZER, CLASS_NAMES, TEMPLATES)
    assert encoded == [*TEMPLATES, TEMPLATES[0], *TEMPLATES]
    assert torch.equal(pf.clip.mean_of_units(each), plain)
    pf.clip.ZeroShotTeacher(model, TOKENIZER, CLASS_NAMES, TEMPLATES[0])
    assert encoded[-1] == TEMPLATES[0]
    assert len(encoded) == 8
