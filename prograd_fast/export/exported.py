"""The things that every exported file holds: the classifier, its prompts, and facts about the run and the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prograd_fast.clip import LoadedClip
from prograd_fast.clip.emoji_lite import NAMES as EMBEDDED_MODELS
from prograd_fast.export.classifier import Classifier, classifier_of
from prograd_fast.methods import Learner, Method, PromptTuningLearner
from prograd_fast.methods.class_features import Corrected

_PROMPT_USE = """
# The prompts that give these class features, as input of the text tower between token embedding and positions.
pad = model.context_length - prompts.shape[-2]
ids, words = F.pad(token_ids, (0, pad)), F.pad(prompts, (0, 0, 0, pad))
handle = model.{embedding}.register_forward_hook(lambda *_: words)
class_features = F.normalize(model.encode_text(ids), dim=-1)  # the columns of zeroshot_weights
handle.remove()
"""


@dataclass(frozen=True)
class Exported:
    """A run's classifier and what belongs to it.

    Attributes:
        classifier: the weights.
        prompts: by name, empty for a method without prompts. "prompts": (C, L, d) token embeddings with the context
            among them, without positions, or (S, C, L, d) of S samples; "token_ids": (C, L) int64, where L ends at the
            longest prompt; "deep": (J, M, d) replace the context before block 1 ... J (PromptSRC); "correction": (D,)
            is added to the text tower's output before it is normalised (LASP).
        facts: texts by name: "method", "model", "pretrained", "transform" of the pictures.
        embedding: where the model has its token embedding, "token_embedding" or "text.token_embedding".
    """

    classifier: Classifier
    prompts: Mapping[str, Tensor]
    facts: Mapping[str, str]
    embedding: str = "token_embedding"

    @classmethod
    def of(cls, record: Mapping[str, Any], method: Method, learner: Learner, clip: LoadedClip) -> "Exported":
        """Take the classifier of a run for all classes that `prograd-fast predict` tells.

        Raises:
            ValueError: see `classifier_of`.
        """
        names = record["data"]["class_names"] if method.names_new_classes else record["trained_classes"]
        facts = {
            "method": method.name,
            "model": clip.name,
            "pretrained": clip.pretrained or "",
            "transform": clip.transform,
        }
        classifier = classifier_of(learner, names)
        prompts = prompts_of(learner, names) if isinstance(learner, PromptTuningLearner) else {}
        inner = isinstance(getattr(clip.model, "text", None), nn.Module)
        return cls(classifier, prompts, facts, "text.token_embedding" if inner else "token_embedding")

    @property
    def model_use(self) -> str:
        """Python that loads the model and its preprocessing."""
        name, pretrained = self.facts["model"], self.facts["pretrained"]
        if name in EMBEDDED_MODELS:
            return f"model, _, preprocess = prograd_fast.clip.load_emoji_lite({name!r})"
        named = ", ".join(repr(part) for part in (name, pretrained) if part)
        return f"model, _, preprocess = open_clip.create_model_and_transforms({named})"

    @property
    def prompt_use(self) -> str:
        """Python that runs the prompts through open_clip's text tower; empty where that alone gives no features."""
        plain = self.prompts and not {"deep", "correction"} & self.prompts.keys()
        return _PROMPT_USE.format(embedding=self.embedding) if plain and self.prompts["prompts"].ndim == 3 else ""


@torch.no_grad()
def prompts_of(learner: PromptTuningLearner, class_names: Sequence[str]) -> dict[str, Tensor]:
    """The text tower's input for these classes, on the CPU: `Exported.prompts`."""
    given: list[Tensor | None] = []
    net, context = learner.net.with_classes(class_names), learner.context
    net.encoder.register_forward_pre_hook(lambda module, arguments: given.extend(arguments))
    context.class_features(net, learner.task.image_features, learner.fixed_noise())
    contexts, deep = given
    assert contexts is not None
    prompts = net.encoder.prompts(contexts)
    found = {
        "prompts": prompts[0] if len(prompts) == 1 else prompts,
        "token_ids": net.encoder.token_ids,
        "deep": deep,
        "correction": context.correction if isinstance(context, Corrected) else None,
    }
    return {name: tensor.detach().cpu().contiguous() for name, tensor in found.items() if tensor is not None}
