"""The job: tune a prompt, keep it in a folder, use it again."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prograd_fast.clip import PromptedCLIP, SavedPrompt, load_prompt, save_prompt
from prograd_fast.data import PictureSet
from prograd_fast.methods import METHODS, Learner, PromptTuning, TunedPrompt, ZeroShot, ZeroShotLearner
from prograd_fast.training.features import encode_pictures
from prograd_fast.training.model import Clip
from prograd_fast.training.protocol import Plan, class_groups, test_parts
from prograd_fast.training.record import Record, run_record, setup_record, write_json
from prograd_fast.training.run import examine, run_method

RUN_FILES = ("record.json", "prompt.safetensors")

Track = Callable[[str, int], Callable[[], None]]
"""Opens a progress bar: its label and length in, the function that moves it on by one out."""


def train_prompt(
    method: PromptTuning, clip: Clip, pictures: PictureSet, plan: Plan, track: Track, cache: Path | None = None
) -> tuple[Record, PromptedCLIP]:
    """Tune a prompt and test it, beside the untouched model.

    Args:
        method: what to tune.
        clip: the model.
        pictures: the set.
        plan: who learns from what.
        track: opens progress bars.
        cache: folder of image features that runs share, or None.

    Returns:
        The run record (`setup_record`, `run_record` and "zero_shot_accuracy"), and the network with the tuned context.

    Raises:
        ValueError: a picture cannot be read, or class names and context do not fit into the text tower.
    """
    # Looking at the pictures takes longest: settings and class names that do not fit the model are refused before.
    PromptedCLIP(clip.model, clip.tokenizer, pictures.class_names, method.n_ctx, method.ctx_init)
    started = time.perf_counter()
    features = encode_pictures(clip, pictures, plan.rows, track("looking at the pictures", len(plan.rows)), cache)
    encoded = time.perf_counter() - started
    on_step = track("tuning the prompt", method.steps)
    on_tested = track("testing", 2 * sum(len(part.rows) for part in plan.tests.values()))
    tuned = run_method(method, clip, pictures, features, plan, on_step, on_tested)
    untouched = run_method(ZeroShot(method.template), clip, pictures, features, plan, on_tested=on_tested)
    record = {**setup_record(clip, pictures), **run_record(tuned, pictures), "zero_shot_accuracy": untouched.accuracy}
    record["seconds"] = {"encode": encoded, **tuned.seconds}
    assert isinstance(tuned.learner, TunedPrompt)
    return record, tuned.learner.net


def save_run(folder: Path, record: Record, net: PromptedCLIP) -> None:
    """Write `RUN_FILES`, the record last: where it is, the run is whole. OSError if the folder cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {name: record[name] for name in ("model", "method", "settings", "shots", "seed", "partition", "accuracy")}
    save_prompt(folder / "prompt.safetensors", net, **told)
    write_json(folder / "record.json", record)


def load_run(folder: Path) -> tuple[Record, SavedPrompt]:
    """Read what `save_run` wrote: the record and the tuned prompt.

    Raises:
        ValueError: the folder or a file in it is missing, or is not whole.
    """
    try:
        record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        _check_record(record)
        return record, load_prompt(folder / "prompt.safetensors")
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is not a run of `prograd-fast train`: {error}") from error


def _check_record(record: Any) -> None:
    """ValueError unless all is there that is read of a run's record."""
    kinds = {"method": str, "model.name": str, "model.pretrained": str | None, "settings.ctx_init": str}
    for key, kind in {**kinds, "data.class_names": list}.items():
        value = record
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if not isinstance(value, kind):
            raise ValueError(f"record.json: {key} is {value!r}")
    if record["method"] not in [method.name for method in METHODS]:
        raise ValueError(f"record.json: unknown method {record['method']!r}")


def evaluate_run(
    record: Record, prompt: SavedPrompt, clip: Clip, pictures: PictureSet, track: Track, cache: Path | None = None
) -> dict[str, dict[str, float]]:
    """Test a tuned prompt on the test pictures of any set, among all of that set's classes.

    Args:
        record: of the run that made the prompt.
        prompt: the prompt.
        clip: the model that it was tuned for.
        pictures: the set, the one that the prompt was tuned on or another.
        track: opens progress bars.
        cache: folder of image features that runs share, or None.

    Returns:
        Method ("zero-shot" and the run's own) -> part of the set -> top-1 accuracy in [0, 1].
    """
    parts = test_parts(pictures, class_groups(pictures, None))
    tests = {name: part for name, part in parts.items() if name != "validation"}
    rows = np.concatenate([part.rows for part in tests.values()])
    learners: dict[str, Learner] = {
        "zero-shot": ZeroShotLearner(clip.model, clip.tokenizer, f"{record['settings']['ctx_init']} {{}}."),
        record["method"]: TunedPrompt(prompt.build(clip.model, clip.tokenizer, pictures.class_names)),
    }
    features = encode_pictures(clip, pictures, rows, track("looking at the pictures", len(rows)), cache)
    on_tested = track("testing", len(learners) * len(rows))
    return {name: examine(learner, clip, pictures, features, tests, on_tested) for name, learner in learners.items()}


@torch.no_grad()
def predict_files(
    record: Record, prompt: SavedPrompt, clip: Clip, files: Sequence[Path], track: Track
) -> tuple[tuple[str, ...], Tensor]:
    """Classify picture files among all classes of the set that the prompt was tuned on.

    Returns:
        The C class names, and (len(files), C) probabilities.

    Raises:
        ValueError: files that are not readable pictures.
    """
    class_names = tuple(record["data"]["class_names"])
    n = len(files)
    pictures = PictureSet(
        "predict", class_names, np.zeros(n, np.int64), np.array(["test"] * n), np.array([""] * n), list(files)
    )
    scores = TunedPrompt(prompt.build(clip.model, clip.tokenizer)).scores(class_names)
    features = encode_pictures(clip, pictures, np.arange(n), track("looking at the pictures", n))
    return class_names, scores(features.values).softmax(dim=1)
