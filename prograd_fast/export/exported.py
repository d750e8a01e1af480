"""The things that every exported file holds: the classifier, its prompts, and facts about the run and the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prograd_fast.clip import LoadedClip
from prograd_fast.export.classifier import Classifier, classifier_of
from prograd_fast.methods import Learner, Method, PromptTuningLearner
from prograd_fast.methods.class_features import Corrected

_MODEL_USE = """
import prograd_fast

clip = prograd_fast.clip.load_model({model}, device="cpu")  # with open_clip alone: force_quick_gelu={quick}
model, preprocess = clip.model, clip.preprocess
"""
_PROMPT_USE = """
# The prompts that give these class features, as input of the text tower between token embedding and positions.
pad = {length} - prompts.shape[-2]
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
        prompts: by name, empty for a method whose classifier is more than the tower makes of prompts. "prompts":
            (C, L, d) token embeddings with the context among them, without positions, or (S, C, L, d) of S samples;
            "token_ids": (C, L) int64, where L ends at the longest prompt; "deep": (J, M, d) replace the context before
            block 1 ... J (PromptSRC); "class_tokens": (C, M, d) replace it in each class's prompt before the block
            "class_tokens_before" (TCP); "correction": (D,) is added to the text tower's output before it is normalised
            (LASP).
        facts: texts by name: "method", "model", "pretrained", "model_digest", "activation" ("QuickGELU" or none),
            "transform" of the pictures.
        prompt_use: Python that runs the prompts through open_clip's text tower, for the shell of `write_open_clip`;
            empty where the tower alone does not give the class features.
    """

    classifier: Classifier
    prompts: Mapping[str, Tensor]
    facts: Mapping[str, str]
    prompt_use: str = ""

    @classmethod
    def of(cls, record: Mapping[str, Any], method: Method, learner: Learner, clip: LoadedClip) -> "Exported":
        """Take the classifier of a run for all classes that `prograd-fast predict` tells.

        Raises:
            ValueError: see `classifier_of`.
        """
        from open_clip.transformer import QuickGELU  # takes seconds to import

        names = record["data"]["class_names"] if method.names_new_classes else record["trained_classes"]
        facts = {
            "method": method.name,
            "model": clip.name,
            "pretrained": clip.pretrained or "",
            "model_digest": clip.digest,
            "activation": "QuickGELU" if any(isinstance(m, QuickGELU) for m in clip.model.modules()) else "",
            "transform": clip.transform,
        }
        classifier = classifier_of(learner, names)
        if type(learner) is not PromptTuningLearner:  # it has more in its classifier than the tower makes of prompts
            return cls(classifier, {}, facts)
        prompts, tower = prompts_of(learner, names), learner.net.tower
        beside = {"deep", "class_tokens", "correction"} & prompts.keys()
        plain = prompts["prompts"].ndim == 3 and not beside
        (embedding,) = (name for name, module in clip.model.named_modules() if module is tower.embedding)
        use = _PROMPT_USE.format(embedding=embedding, length=tower.context_length)
        return cls(classifier, prompts, facts, use if plain else "")

    @property
    def model_use(self) -> str:
        """Python that loads the model and its preprocessing.

        The loader is ours: it chooses QuickGELU by the weights, where open_clip's goes by the name alone.
        """
        named = ", ".join(repr(self.facts[key]) for key in ("model", "pretrained") if self.facts[key])
        return _MODEL_USE.format(model=named, quick=self.facts["activation"] == "QuickGELU")


@torch.no_grad()
def prompts_of(learner: PromptTuningLearner, class_names: Sequence[str]) -> dict[str, Tensor]:
    """The text tower's input for these classes, on the CPU: `Exported.prompts`."""
    given: list[Any] = []
    net, context = learner.net.with_classes(class_names), learner.context
    net.encoder.register_forward_pre_hook(lambda module, arguments: given.extend(arguments))
    context.class_features(net, learner.task.image_features, learner.fixed_noise())
    contexts, deep, before = given
    prompts = net.encoder.prompts(contexts)
    found = {
        "prompts": prompts[0] if len(prompts) == 1 else prompts,
        "token_ids": net.encoder.token_ids,
        "deep": deep if before is None else None,
        "class_tokens": None if before is None else deep,
        "class_tokens_before": None if before is None else torch.tensor(before),
        "correction": context.correction if isinstance(context, Corrected) else None,
    }
    return {name: tensor.detach().cpu().contiguous() for name, tensor in found.items() if tensor is not None}
