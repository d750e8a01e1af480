"""The classifier as arrays: safetensors in the form of open_clip's zero-shot classifiers, or NumPy's .npz."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prograd_fast.export.exported import Exported
from prograd_fast.files.tensors import write_tensors
from prograd_fast.files.writing import replacing

_OPEN_CLIP_USE = """\
import json, torch.nn.functional as F
from safetensors import safe_open

with safe_open({file!r}, "pt") as file:
    class_names = json.loads(file.metadata()["class_names"])
    tensors = {{name: file.get_tensor(name) for name in file.keys()}}
image_features = F.normalize(model.encode_image(images), dim=-1)  # images: preprocess(picture), stacked
logits = tensors["logit_scale"] * image_features @ tensors["zeroshot_weights"]{bias}
probabilities = logits.softmax(dim=-1)
"""
_NUMPY_USE = """
import numpy as np

arrays = np.load({file!r})  # no pickle in it
class_names = arrays["class_names"]
# image_features: (B, D) rows of length 1 from the model's image tower
logits = arrays["logit_scale"] * image_features @ arrays["zeroshot_weights"]{bias}
exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
probabilities = exp / exp.sum(axis=-1, keepdims=True)
"""
_MEAN = "probabilities = probabilities.mean(axis=0)  # of S samples: zeroshot_weights is (S, D, C)\n"


def write_open_clip(path: Path, exported: Exported) -> str:
    """Write a safetensors file: what `open_clip.build_zero_shot_classifier` returns, and what belongs to it.

    Tensors: "zeroshot_weights" (D, C) float32, "logit_scale" () (the factor itself, not its logarithm), "bias" (C,)
    where there is one, and `Exported.prompts`. The header has "class_names" as JSON, the `Exported.facts`, and "usage".

    Returns:
        The usage: Python that classifies images with the file.

    Raises:
        ValueError: the prediction is a mean over several matrices.
        OSError: the file cannot be written.
    """
    if len(exported.classifier.weight) > 1:
        raise ValueError(
            f"{exported.facts['method']} averages the predictions of {len(exported.classifier.weight)} matrices, where "
            "open_clip's form has one; export it with --to numpy or --to onnx"
        )
    tensors = _tensors(exported)
    bias = ' + tensors["bias"]' if "bias" in tensors else ""
    usage = exported.model_use + _OPEN_CLIP_USE.format(file=path.name, bias=bias)
    if exported.prompt_use:
        usage += '\nprompts, token_ids = tensors["prompts"], tensors["token_ids"]' + exported.prompt_use
    texts = {**exported.facts, "class_names": json.dumps(exported.classifier.class_names), "usage": usage}
    write_tensors(path, texts, tensors)
    return usage


def write_numpy(path: Path, exported: Exported) -> str:
    """Write an .npz file without any pickle, for `numpy.load`.

    Arrays: those of `write_open_clip`, with "zeroshot_weights" (S, D, C) where a prediction is the mean over S
    matrices; and as texts "class_names" (C,), the `Exported.facts`, and "usage".

    Returns:
        The usage: Python that classifies image features with the file.

    Raises:
        OSError: the file cannot be written.
    """
    tensors = _tensors(exported)
    usage = _NUMPY_USE.format(file=path.name, bias=' + arrays["bias"]' if "bias" in tensors else "")
    if tensors["zeroshot_weights"].ndim == 3:
        usage += _MEAN
    texts = {**exported.facts, "class_names": exported.classifier.class_names, "usage": usage}
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
    arrays |= {name: np.array(text) for name, text in texts.items()}
    with replacing(path) as temporary:
        np.savez(temporary, **arrays)
    return usage


def _tensors(exported: Exported) -> dict[str, Tensor]:
    classifier = exported.classifier
    weight = classifier.weight
    found = {
        "zeroshot_weights": weight[0] if len(weight) == 1 else weight,
        "logit_scale": torch.tensor(classifier.scale),
        **exported.prompts,
    }
    return found if classifier.bias is None else {**found, "bias": classifier.bias}
