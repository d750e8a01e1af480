"""Load the model to adapt, by name: one that ships with the package, or any open_clip model."""

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prograd_fast.clip.before_projection import before_projection
from prograd_fast.clip.digest import model_digest
from prograd_fast.clip.emoji_lite import NAMES, load_emoji_lite
from prograd_fast.clip.pretrained import (
    Weights,
    check_name,
    choose,
    fill,
    has_both,
    near,
    read_weights,
    shorten,
    split_activation,
    tags_of,
    transform_options,
)
from prograd_fast.clip.tokens import Tokenizer
from prograd_fast.files.reading import read_json

NUMPY = (".npz", ".npy")
MOST_CHARACTERS = 400  # of a reason: open_clip's own can have 34 kB
_SAME = 0.01  # of pixels of mean 0 and deviation 1: versions of Pillow round by 0.01 at most, and means here by less
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of an object, another one in every process


@dataclass(frozen=True)
class LoadedClip:
    """An image-text model with all that belongs to it.

    Attributes:
        name: as given to `load_model`, local paths made absolute.
        pretrained: likewise.
        model: In evaluation mode, frozen, on `device`.
        tokenizer: Sequence of texts -> (texts, context length) int64 token ids.
        preprocess: PIL picture -> (3, H, W) float32.
        device: Where the model is.
        max_memory: Bytes that the text tower's activations may take, None for no limit (`PromptedCLIP`).
    """

    name: str
    pretrained: str | None
    model: Any  # an open_clip model: a Module whose methods type checkers cannot see
    tokenizer: Tokenizer
    preprocess: Callable[[Any], Tensor]
    device: torch.device
    max_memory: float | None = None

    @property
    def digest(self) -> str:
        """The digest of the weights, see `model_digest`."""
        return model_digest(self.model)

    def before_projection(self) -> "LoadedClip":
        """The same, with image features from before the visual projection; see `clip.before_projection`."""
        return replace(self, model=before_projection(self.model))

    @property
    def transform(self) -> str:
        """The name of `preprocess`, for records."""
        function = self.preprocess
        name = getattr(function, "__qualname__", None)
        return f"{function.__module__}.{name}" if name else _ADDRESS.sub("", " ".join(repr(function).split()))

    @property
    def pixels(self) -> list[float]:
        """A few numbers of what `preprocess` makes of a picture, see `same_pixels`."""
        import numpy as np
        from PIL import Image

        across, down = np.linspace(0, 200, 613)[None, :, None], np.linspace(0, 90, 401)[:, None, None]
        noise = np.random.RandomState(0).randint(0, 50, (401, 613, 3))
        values = self.preprocess(Image.fromarray((0.7 * across + down + noise).astype(np.uint8))).float()
        quarters = [half for rows in values.tensor_split(2, -2) for half in rows.tensor_split(2, -1)]
        found = [f(channel).item() for quarter in quarters for channel in quarter for f in (torch.mean, torch.std)]
        return [round(number, 4) for number in (*values.shape, *found)]


def same_pixels(one: Sequence[object], other: Sequence[object]) -> bool:
    """Whether two models see pictures alike by their `LoadedClip.pixels`, up to the rounding of other versions."""
    return len(one) == len(other) and all(
        isinstance(a, int | float) and isinstance(b, int | float) and abs(a - b) <= _SAME * (1 + abs(b))
        for a, b in zip(one, other, strict=True)
    )


def load_model(name: str, pretrained: str | None = None, device: str | None = None) -> LoadedClip:
    """Load a model, frozen.

    Args:
        name: "emoji-lite", "emoji-lite-named", or what `open_clip.create_model_and_transforms` takes: an architecture
            such as "ViT-B-16", "local-dir:FOLDER", "hf-hub:OWNER/REPO". An architecture gets the activation that its
            weights were trained with; "ViT-B-16-quickgelu" and "ViT-B-16-gelu" say it for weights that do not tell.
        pretrained: For an open_clip architecture: a file of weights, or the tag of weights that open_clip downloads.
        device: A torch device; None takes the GPU if there is one.

    Files are known by their content (`prograd_fast.clip.pretrained.read_weights`): weights of OpenAI, open_clip and
    Hugging Face, in safetensors, in torch.save's files, checkpoints included, and in TorchScript. Nothing in them runs.

    Returns:
        The model with tokenizer and preprocessing, float32.

    Raises:
        ValueError: Unknown name, device or tag; no weights asked for; weights that do not load or do not fit, or whose
            activation nobody knows.
    """
    where = _device(device)
    if name in NAMES:
        if pretrained is not None:
            raise ValueError(
                f"model {name!r} brings its own weights, got pretrained={pretrained!r}: leave it out, or name the "
                "model that it is for, such as ViT-B-16"
            )
        model, tokenizer, preprocess = load_emoji_lite(name)
        return LoadedClip(name, None, model.to(where), tokenizer, preprocess, where)
    if ":" in name:
        if pretrained is not None:
            raise ValueError(f"model {name!r} brings its own weights, got pretrained={pretrained!r}; leave it out")
    else:
        check_name(name, pretrained)
    # Run records name the model: as absolute paths, so that they can be used from any folder.
    if name.startswith("local-dir:"):
        name = f"local-dir:{Path(name.removeprefix('local-dir:')).resolve()}"
    elif pretrained is not None and Path(pretrained).is_file() and pretrained not in tags_of(name):
        pretrained = str(Path(pretrained).resolve())
    try:
        import open_clip

        options = {"pretrained_text": False, "require_pretrained": True, "device": where}
        if ":" in name:
            _check_config(name)
            usual = bool(open_clip.get_model_config(name).get("quick_gelu", False))
            with _filling(lambda file: _of_folder(read_weights(file), usual)):
                model, _, preprocess = open_clip.create_model_and_transforms(name, **options)
            tokenizer = open_clip.get_tokenizer(name)
        else:
            model, preprocess, tokenizer = _architecture(name, str(pretrained), options)
    except Exception as error:  # open_clip, torch and the download each raise their own kinds
        reason = shorten(" ".join(str(error).split()) or type(error).__name__, MOST_CHARACTERS)
        raise ValueError(f"cannot load model {name!r} with weights {pretrained!r}: {reason}") from error
    model.eval().requires_grad_(False)
    return LoadedClip(name, pretrained, model, tokenizer, preprocess, where)


def _architecture(name: str, pretrained: str, options: dict[str, Any]) -> tuple[Any, Any, Any]:
    """One of open_clip's architectures with weights from a file or under a tag."""
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    known = open_clip.list_models()
    base, asked = split_activation(name, known)
    listed = name if name in known else base
    both, usual = has_both(base, known), bool(open_clip.get_model_config(listed).get("quick_gelu", False))
    tag = get_pretrained_cfg(listed, pretrained)
    read: Callable[[Path], Weights] = read_weights
    trained = None
    if tag:
        trained = bool(tag.get("quick_gelu")) or (False if both else None)
    elif not Path(pretrained).exists():
        raise ValueError(f"there is no such file, and {name} has no such tag{near(pretrained, tags_of(name))}")
    elif not pretrained.endswith(NUMPY):
        weights = read_weights(Path(pretrained))
        read, trained = lambda file: weights, weights.quick_gelu
        options = options | transform_options(listed, weights)
    quick = choose(base, asked, trained, both, usual)
    with _filling(read), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "QuickGELU mismatch")  # between a name and a tag: it is chosen here
        model, _, preprocess = open_clip.create_model_and_transforms(
            listed, pretrained=pretrained, force_quick_gelu=quick, quick_gelu=quick, **options
        )
    return model, preprocess, open_clip.get_tokenizer(listed)


def _of_folder(weights: Weights, configured: bool) -> Weights:
    if weights.quick_gelu not in (None, configured):
        right = str(weights.quick_gelu).lower()
        raise ValueError(
            f'its weights were trained with another activation; set "quick_gelu": {right} in its "model_cfg"'
        )
    return weights


def is_known_model(name: str, pretrained: str | None) -> bool:
    """Return whether a model is embedded, or in open_clip's own list of weights.

    Any other name is a file, a folder or a repository. The writer of a record can name one and put anything there.
    """
    if name in NAMES:
        return pretrained is None
    import open_clip

    return name in open_clip.list_models() and pretrained in open_clip.list_pretrained_tags_by_model(name)


def _check_config(name: str) -> None:
    """ValueError if a folder has pipes for weights, or a configuration asks for code (`trust_remote_code`)."""
    import open_clip

    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:"))
        read_json(folder / "open_clip_config.json")
        for file in folder.iterdir():
            if file.suffix in (".safetensors", ".bin", ".pth") and not file.is_file():
                raise ValueError(f"{file} is not a regular file")
    elif not name.startswith("hf-hub:"):
        return
    text = open_clip.get_model_config(name).get("text_cfg", {})
    if "trust_remote_code" in text.get("tokenizer_kwargs", {}):
        raise ValueError("its tokenizer is a program (trust_remote_code), which is not run")


@contextmanager
def _filling(read: Callable[[Path], Weights]) -> Iterator[None]:
    """Meanwhile open_clip takes weights from `read` instead of torch.load, which can run what is in a file."""
    from open_clip import factory

    load_checkpoint = factory.load_checkpoint

    def load(model: Any, file: str, *args: Any, **options: Any) -> Any:
        if str(file).endswith(NUMPY):  # SigLIP's, which open_clip reads without pickles
            return load_checkpoint(model, file, *args, **options)
        return fill(model, read(Path(file)).state)

    factory.load_checkpoint = load
    try:
        yield
    finally:
        factory.load_checkpoint = load_checkpoint


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros((), device=device).item()  # a device without values, such as meta, refuses
    except (RuntimeError, AssertionError) as error:  # AssertionError: "Torch not compiled with CUDA enabled"
        raise ValueError(f"cannot use device {name!r}: {str(error).splitlines()[0]}") from error
    return device
