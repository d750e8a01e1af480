"""ATPrompt: words for attributes stand before the context, each behind soft tokens of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prograd_fast.clip import PromptedCLIP
from prograd_fast.clip.context import initial_context
from prograd_fast.methods.base import Task
from prograd_fast.methods.class_features import Context
from prograd_fast.methods.presets import COOP
from prograd_fast.methods.prompt_tuning import PromptTuning, PromptTuningLearner

MOST_TOKENS = 1_000  # no text tower of CLIP's kind reads as many
_RELEASED: Mapping[str, Any] = {**COOP, "n_ctx": 2, "n_attribute": 2, "epochs": 100}
_WORDS = {  # by data set
    "imagenet": ("color", "shape"), "caltech": ("shape", "size"), "pets": ("playfulness", "energy"),
    "cars": ("luxury",), "flowers": ("color", "habitat", "growth"), "food": ("flavor", "preparation"),
    "aircraft": ("design", "range"), "sun": ("function",), "dtd": ("pattern", "color", "design"),
    "eurosat": ("habitat",), "ucf": ("precision",),
}  # fmt: skip
_OTHERS: Mapping[str, Mapping[str, Any]] = {"imagenet": {"epochs": 10}, "dtd": {"n_ctx": 4, "n_attribute": 4}}


class AttributeContext(Context):
    """One context whose rows of words stay as they are.

    Args:
        ctx: (n, d) soft tokens and words.
        is_word: (n,) which rows are words.
    """

    is_word: Tensor
    words: Tensor

    def __init__(self, ctx: nn.Parameter, is_word: Tensor) -> None:
        super().__init__(ctx)
        self.register_buffer("is_word", is_word.to(ctx.device)[:, None], persistent=False)
        self.register_buffer("words", ctx.detach().clone(), persistent=False)

    @torch.no_grad()
    def put_words_back(self) -> None:
        """Undo what weight decay made of their rows in the parameter, which is saved as a whole."""
        self.ctx.copy_(torch.where(self.is_word, self.words, self.ctx))

    def class_features(self, net: PromptedCLIP, image_features: Tensor, noise: Tensor | None) -> Tensor:
        """(C, D)."""
        return net.class_features(torch.where(self.is_word, self.words, self.ctx))


@dataclass(frozen=True)
class ATPrompt(PromptTuning):
    """Li et al., ICCV 2025, arXiv:2412.09442; code zhengli97/ATPrompt, on CoOp, shallow.

        [SOS | a1 | E(word 1) | a2 | E(word 2) | ... | ctx 1..M | name . EOT]

    with soft tokens a_i from N(0, 0.01²) before each attribute; the loss is the cross-entropy. `context.ctx` has all
    rows between SOS and name, those of the words too, which are not trained. Words may have several tokens: the
    authors' layout has room for one, and cuts "playfulness" of their own prompt for pets to "play", without "energy"
    behind it. A text tower that has read few words, such as emoji-lite's, loses by attributes that it does not know.

    Attributes:
        attributes: The words. The authors let a language model propose some for each data set, and search among them.
        n_attribute: Soft tokens before each word.

    Raises:
        ValueError: a setting is out of range; words without tokens (told by `start`).
    """

    attributes: tuple[str, ...] = ("color", "shape")
    n_attribute: int = 2

    name: ClassVar[str] = "atprompt"
    title: ClassVar[str] = "ATPrompt"
    year: ClassVar[int | None] = 2025
    trains: ClassVar[str] = "context tokens before and between attribute words"
    keeps: ClassVar[str] = "the attribute words"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # scripts/coop_atp and the table of the README
        f"vit-b16-base-to-new-{data}": {**_RELEASED, "attributes": words, **_OTHERS.get(data, {})}
        for data, words in _WORDS.items()
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.n_attribute <= MOST_TOKENS:
            raise ValueError(f"n_attribute must be 1 or more, and {MOST_TOKENS} at most, got {self.n_attribute}")
        if not self.attributes:
            raise ValueError("attributes: expected a word at least, such as 'color', got none; without any it is coop")

    def net(self, task: Task, class_names: Sequence[str]) -> PromptedCLIP:
        """The network over these names, with the words before the context."""
        plain = super().net(task, class_names)
        rows: list[Tensor] = []
        for words in self._words(plain):
            soft = 0.01 * torch.randn(self.n_attribute, plain.tower.width)
            rows += [soft.to(words), words]
        start = torch.cat([*rows, plain.prompt.ctx.detach()])
        return PromptedCLIP(
            task.model, task.tokenizer, class_names, n_ctx=None, ctx_init=start, max_memory=task.max_memory
        )

    def _words(self, net: PromptedCLIP) -> list[Tensor]:
        """The rows of each attribute's words."""
        return [initial_context(net.tokenizer, net.tower, None, word, None)[0].detach() for word in self.attributes]

    def context(self, learner: PromptTuningLearner) -> Context:
        """The rows between SOS and the name."""
        ctx = learner.net.prompt.ctx
        is_word, first = torch.zeros(len(ctx), dtype=torch.bool), 0
        for words in self._words(learner.net):
            first += self.n_attribute
            is_word[first : first + len(words)] = True
            first += len(words)
        return AttributeContext(ctx, is_word)

    def epoch_ended(self, learner: PromptTuningLearner, epoch: int) -> None:
        """Weight decay leaves the words as they were."""
        super().epoch_ended(learner, epoch)
        assert isinstance(learner.context, AttributeContext)
        learner.context.put_words_back()
