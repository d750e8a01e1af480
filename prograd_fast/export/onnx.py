"""Image tower and classifier as one ONNX file, which is compared with PyTorch before it is there."""

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from prograd_fast.clip import LoadedClip
from prograd_fast.export.exported import Exported
from prograd_fast.files.writing import replacing
from prograd_fast.installation import to_install

OPSET = 18  # the lowest that torch's exporter writes without converting; onnxruntime reads it from 1.14 on
TOLERANCE = 1e-4  # of a probability
MOST_BYTES = 2_000_000_000  # of weights: a protobuf message ends at 2 GiB
_BATCHES = (1, 5)  # sizes that are compared; the example has another one
_USE = """
import json, onnxruntime

session = onnxruntime.InferenceSession({file!r})
class_names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
# images: (B, {shape}) float32, preprocessed as custom_metadata_map["transform"] says
probabilities = session.run(None, {{"images": images}})[0]
"""


class ImageClassifier(nn.Module):
    """Preprocessed images (B, 3, H, W) to probabilities (B, C)."""

    def __init__(self, model: Any, exported: Exported) -> None:
        super().__init__()
        self.model, self.scale = model, exported.classifier.scale
        self.register_buffer("weight", exported.classifier.weight)
        self.register_buffer("bias", exported.classifier.bias)
        self._classifier = exported.classifier

    def forward(self, images: Tensor) -> Tensor:
        """(B, C)."""
        return self._classifier(normalize(self.model.encode_image(images).float(), dim=-1))


def write_onnx(path: Path, exported: Exported, clip: LoadedClip, scores: Callable[[Tensor], Tensor]) -> str:
    """Write an ONNX file with input "images" (B, 3, H, W) float32, any B, and output "probabilities" (B, C).

    Class names, the `Exported.facts` and the usage are in the file's metadata.

    Args:
        path: where to.
        exported: the classifier.
        clip: the model, on the CPU.
        scores: the learner's own scores of image features, which the file's probabilities are compared with.

    Returns:
        The usage: Python that classifies images with the file.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is missing.
        ValueError: the image tower is too large or cannot be exported, or the file gives other probabilities.
        OSError: the file cannot be written.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ModuleNotFoundError as error:
        message = f"--to onnx needs {error.name}, which is not installed: {to_install('onnx')}"
        raise ImportError(message, name=error.name) from error
    size = sum(p.numel() * p.element_size() for p in clip.model.visual.parameters())
    if size > MOST_BYTES:
        raise ValueError(
            f"the image tower has {size / 1e9:.1f} GB of weights, and one ONNX file holds at most {MOST_BYTES / 1e9:g} "
            "GB; take a smaller --model, or export with --to open_clip"
        )
    shape = clip.preprocess(Image.new("RGB", (64, 64))).shape
    program = _exported_program(ImageClassifier(clip.model, exported).eval(), torch.randn(2, *shape))
    usage = _USE.format(file=path.name, shape=", ".join(map(str, shape)))
    names = json.dumps(exported.classifier.class_names)
    program.model.metadata_props.update({**exported.facts, "class_names": names, "usage": usage})
    with replacing(path) as temporary:
        program.save(temporary)
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        _check(session, clip, scores, shape)
    return usage


def _exported_program(module: nn.Module, example: Tensor) -> Any:
    """ValueError for whatever goes wrong with a stranger's image tower."""
    log = logging.getLogger("onnxscript")
    level = log.level
    try:
        log.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about its own insides, as its log
            return torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["images"],
                output_names=["probabilities"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:300]
        raise ValueError(f"PyTorch cannot export this image tower to ONNX: {type(error).__name__}: {reason}") from error
    finally:
        log.setLevel(level)


@torch.no_grad()
def _check(session: Any, clip: LoadedClip, scores: Callable[[Tensor], Tensor], shape: torch.Size) -> None:
    """ValueError unless a file gives the learner's own probabilities, for several sizes of a batch."""
    generator = torch.Generator().manual_seed(0)
    for n in _BATCHES:
        images = torch.randn(n, *shape, generator=generator)
        expected = scores(normalize(clip.model.encode_image(images).float(), dim=-1)).softmax(dim=1)
        found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        off = (found - expected).abs().max().item()
        if not off <= TOLERANCE:
            raise ValueError(
                f"the ONNX file gives probabilities that differ from PyTorch's by {off:.2g}; expected {TOLERANCE:g} at "
                "most, so it is not kept. Please report it with the model's name"
            )
