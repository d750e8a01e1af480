"""A text tower of a user's own needs what `TextTower` promises and nothing more: encode_text and token_embedding."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prograd_fast as pf
from tests.clip.test_hugging_face_towers import SIZES
from tests.tiny_clip import TOKENIZER

NAMES = ["cat", "red_panda", "dog"]


class Bag(nn.Module):
    """The least that there can be: a mean of word vectors, for texts of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(49408, 8)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def encode_text(self, token_ids: Tensor) -> Tensor:
        words = self.token_embedding(token_ids)
        return (words * torch.arange(1, words.shape[1] + 1)[:, None]).tanh().mean(1)


class Inside(nn.Module):
    """The same in `model.text`, with a length that all texts must have."""

    def __init__(self) -> None:
        super().__init__()
        self.text = Bag()
        self.text.context_length = 77
        self.logit_scale = self.text.logit_scale

    def encode_text(self, token_ids: Tensor) -> Tensor:
        assert token_ids.shape[1] == 77
        return self.text.encode_text(token_ids)


class HalfOfOpenClips(Bag):
    """It has open_clip's mask and pooling, but none of the parts that open_clip's tower is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("attn_mask", torch.full((77, 77), float("-inf")).triu(1))
        self.pool_type, self.context_length = "argmax", 77


class OfTransformers(nn.Module):
    """Hugging Face's CLIPModel, as docs/integrations.md wraps it."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import CLIPConfig, CLIPModel

        text = SIZES | {"eos_token_id": 49407, "bos_token_id": 49406}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            config = CLIPConfig(text_config=text, vision_config=SIZES | {"image_size": 16, "patch_size": 8})
            self.inner = CLIPModel(config).eval()
        self.token_embedding = self.inner.text_model.embeddings.token_embedding
        self.context_length, self.logit_scale = 77, self.inner.logit_scale

    def encode_text(self, token_ids: Tensor) -> Tensor:
        return self.inner.get_text_features(input_ids=token_ids).pooler_output


@pytest.mark.parametrize("tower", [Bag, Inside, HalfOfOpenClips, OfTransformers])
@pytest.mark.parametrize("options", [{}, {"class_specific": True}])
def test_prompts_are_encode_text(tower: type[nn.Module], options: dict[str, bool]) -> None:
    model = tower()
    net = pf.clip.PromptedCLIP(model, TOKENIZER, NAMES, None, "a photo of a", **options)
    teacher = pf.clip.ZeroShotTeacher(model, TOKENIZER, NAMES, "a photo of a {}.")
    ids = TOKENIZER(["a photo of a " + name.replace("_", " ") + "." for name in NAMES])
    expected = F.normalize(model.encode_text(ids), dim=-1)
    torch.testing.assert_close(teacher.class_features, expected)
    torch.testing.assert_close(net.class_features(), expected)
    features = F.normalize(torch.randn(5, expected.shape[1], generator=torch.Generator().manual_seed(0)), dim=-1)
    net.logits(features)[0, 0].backward()
    assert net.prompt.ctx.grad is not None
    assert net.prompt.ctx.grad.abs().sum() > 0


def test_deep_prompts_are_refused_in_one_line() -> None:
    net = pf.clip.PromptedCLIP(HalfOfOpenClips(), TOKENIZER, NAMES, 2)
    with pytest.raises(ValueError, match=r"deep: expected a causal tower .*, but the tower has no transformer"):
        net.class_features(deep=torch.zeros(1, 2, 8))
