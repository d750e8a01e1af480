"""Records of runs as `train` and `compare` write them, made up; names of classes and files are hostile."""

import json
from pathlib import Path

import numpy as np

from prograd_fast.training.evaluation import Evaluation

HOSTILE = ["<script>alert(1)</script>", 'a" onload="alert(2)', "&amp; </style><img src=http://evil.example/x>", "‮cba"]


def evaluation(class_names: list[str], n: int, files: list[str] | None = None) -> Evaluation:
    """Of n pictures, of which two thirds are right."""
    random = np.random.RandomState(0)
    k = min(5, len(class_names))
    labels = np.arange(n) % len(class_names)
    top = np.zeros((n, k), np.int64)
    for i in range(n):
        others = [label for label in random.permutation(len(class_names)).tolist() if label != labels[i]]
        top[i] = ([labels[i], *others] if i % 3 else [*others, labels[i]])[:k]
    probabilities = np.sort(random.dirichlet(np.ones(k + 1), n)[:, :k], axis=1)[:, ::-1].astype(np.float32)
    pictures = tuple(files or [f"{class_names[i % len(class_names)]}/{i}.png" for i in range(n)])
    return Evaluation(tuple(class_names), labels, top[:, 0].copy(), probabilities.copy(), top, pictures)


def run_record(tests: dict[str, Evaluation], folder: Path | None = None, steps: int = 30) -> dict:
    """As of `train`."""
    class_names = list(next(iter(tests.values())).class_names)
    rise = np.linspace(0, 1, steps)
    return {
        "created": "2026-01-31T12:00:00+00:00",
        "versions": {"python": "3.12"},
        "model": {"name": "tiny <b>", "pretrained": None, "device": "cpu", "transform": "t"},
        "data": {
            "name": "pictures <i>",
            "folder": None if folder is None else str(folder),
            "class_names": class_names,
            "pictures": 100,
        },
        "method": "prograd",
        "settings": {"lr": 0.03, "ctx_init": "</script><b>words"},
        "shots": 16,
        "seed": 0,
        "partition": None,
        "imbalance": None,
        "trained_classes": class_names,
        "pictures": {"train": 64, **{name: len(one) for name, one in tests.items()}},
        "accuracy": {name: one.accuracy for name, one in tests.items()},
        "zero_shot_accuracy": {name: one.accuracy / 2 for name, one in tests.items()},
        "seconds": {"encode": 1.0, "train": 2.0, "evaluate": 0.5},
        "regime": {"precision": "fp32", "views": None},
        "completed": True,
        "steps": {
            "task_loss": (3 - 2 * rise).tolist(),
            "general_loss": (0.2 * rise).tolist(),
            "cosine": [None, *(rise[1:] - 0.5).tolist()],
            "accuracy": rise.tolist(),
        },
        "details": {name: one.to_record() for name, one in tests.items()},
    }


def grid_record() -> dict:
    """As of `compare`."""
    runs = [
        {
            "method": method,
            "shots": shots,
            "seed": seed,
            "partition": None,
            "imbalance": None,
            "regime": {"precision": "fp32", "views": None},
            "pictures": {"train": 2 * shots},
            "trained_classes": ["a", "b"],
            "left_out": {},
            "accuracy": {"all": level + 0.01 * shots + 0.02 * seed},
        }
        for method, level in (("zero-shot", 0.4), ("coop", 0.6), ("prograd", 0.5))
        for shots in (1, 4)
        for seed in (0, 1)
    ]
    record = run_record({"all": evaluation(["a", "b"], 6)})
    return {
        **{key: record[key] for key in ("created", "versions", "model", "data")},
        "elsewhere": [],
        "equal_shots": {},
        "runs": runs,
    }


def write(folder: Path, record: dict) -> Path:
    """The record where `train` or `compare` would write it; the folder."""
    folder.mkdir(parents=True)
    name = "results.json" if "runs" in record else "record.json"
    (folder / name).write_text(json.dumps(record))
    return folder
