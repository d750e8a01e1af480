"""The base-to-new benchmark: several methods on the same random halves of the classes and the same draws of shots."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prograd_fast.clip import LoadedClip
from prograd_fast.data import PictureSet
from prograd_fast.methods import GradientMethod, Method
from prograd_fast.training.features import encode_pictures
from prograd_fast.training.job import Track
from prograd_fast.training.loop import n_steps
from prograd_fast.training.protocol import make_plan
from prograd_fast.training.record import Record, run_record, setup_record
from prograd_fast.training.run import run_method


def run_benchmark(
    clip: LoadedClip,
    pictures: PictureSet,
    methods: Sequence[Method],
    shots: int,
    partitions: int,
    seeds: int,
    track: Track,
    cache: Path | None = None,
) -> Record:
    """Run every method on every partition and every draw of the shots.

    Each picture goes through the image tower once; all runs share the features.

    Args:
        clip: the model.
        pictures: the set.
        methods: what to compare.
        shots: pictures per base class.
        partitions: number of base/new partitions.
        seeds: number of draws of the shots for each partition.
        track: opens progress bars.
        cache: folder of image features that runs share, or None.

    Returns:
        Model, data and versions as of `setup_record`, and under "runs" one `run_record` for each run.
    """
    plans = [make_plan(pictures, shots, seed, partition) for partition in range(partitions) for seed in range(seeds)]
    rows = np.unique(np.concatenate([plan.rows for plan in plans]))
    features = encode_pictures(clip, pictures, rows, track("looking at the pictures", len(rows)), cache)
    tuned = [method for method in methods if isinstance(method, GradientMethod)]
    steps = sum(n_steps(method, len(plan.train.rows)) for plan in plans for method in tuned)
    on_step = track(f"training, {len(plans)} runs each", steps)
    runs = [run_method(method, clip, pictures, features, plan, on_step) for plan in plans for method in methods]
    return {**setup_record(clip, pictures), "runs": [run_record(run, pictures) for run in runs]}
