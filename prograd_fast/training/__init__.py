"""From a model and a set of pictures to a tuned prompt, its accuracies and a record of how it came about."""

from prograd_fast.clip import is_known_model, load_model
from prograd_fast.training.augmented import AugmentedFeatures
from prograd_fast.training.benchmark import run_benchmark
from prograd_fast.training.features import Features, encode_pictures
from prograd_fast.training.grid import Grid, run_grid
from prograd_fast.training.history import History
from prograd_fast.training.job import (
    CHECKPOINT,
    RUN_FILES,
    Track,
    difference_to,
    evaluate_run,
    load_run,
    predict_files,
    run_facts,
    save_run,
    train_method,
)
from prograd_fast.training.log import tensorboard
from prograd_fast.training.loop import Regime, tune
from prograd_fast.training.protocol import Part, Plan, make_plan
from prograd_fast.training.record import Record, run_record, setup_record, write_json
from prograd_fast.training.run import Run, run_method

__all__ = [
    "CHECKPOINT",
    "RUN_FILES",
    "AugmentedFeatures",
    "Features",
    "Grid",
    "History",
    "Part",
    "Plan",
    "Record",
    "Regime",
    "Run",
    "Track",
    "difference_to",
    "encode_pictures",
    "evaluate_run",
    "is_known_model",
    "load_model",
    "load_run",
    "make_plan",
    "predict_files",
    "run_benchmark",
    "run_facts",
    "run_grid",
    "run_method",
    "run_record",
    "save_run",
    "setup_record",
    "tensorboard",
    "train_method",
    "tune",
    "write_json",
]
