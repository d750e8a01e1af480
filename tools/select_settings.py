"""Accuracy on validation pictures by learning rate and penalty, as `docs/settings.md` reports it.

    python -m tools.select_settings

The base classes, shots and draws of the demo (three partitions, three draws, up to 16 pictures per class), examined on
the validation pictures of the base classes. No test picture is looked at.
"""

from dataclasses import replace
from statistics import fmean

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from prograd_fast.data import load
from prograd_fast.methods import CoOp, KgCoOp, LinearProbe, Method, ProGradCoOp, PromptTuning
from prograd_fast.training import encode_pictures, load_model, make_plan, run_method

SHOTS, PARTITIONS, SEEDS = 16, 3, 3
RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
INVERSE_PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0)


def validation_accuracies(methods: list[Method]) -> list[float]:
    """Mean top-1 accuracy in % of each method over all partitions and draws."""
    pictures, clip = load("emoji"), load_model("emoji-lite", device="cpu")
    plans = [make_plan(pictures, SHOTS, seed, partition) for partition in range(PARTITIONS) for seed in range(SEEDS)]
    plans = [replace(plan, tests={"validation": plan.tests["validation"]}) for plan in plans]
    features = encode_pictures(clip, pictures, np.unique(np.concatenate([plan.rows for plan in plans])))
    return [
        fmean(100 * run_method(method, clip, features, plan).accuracy["validation"] for plan in plans)
        for method in track(methods, "settings", console=Console(stderr=True))
    ]


def main() -> None:
    """Prints two Markdown tables."""
    torch.set_num_threads(1)
    kinds: tuple[type[PromptTuning], ...] = (CoOp, ProGradCoOp, KgCoOp)
    tuned: list[Method] = [kind(lr=rate) for rate in RATES for kind in kinds]
    probes: list[Method] = [LinearProbe(C=c) for c in INVERSE_PENALTIES]
    found = iter(validation_accuracies(tuned + probes))
    print("| lr | CoOp | ProGrad | KgCoOp |\n|---:|---:|---:|---:|")
    for rate in RATES:
        print(f"| {rate} | " + " | ".join(f"{next(found):.1f}" for _ in kinds) + " |")
    print("\n| C | linear probe |\n|---:|---:|")
    for c in INVERSE_PENALTIES:
        print(f"| {c} | {next(found):.1f} |")


if __name__ == "__main__":
    main()
