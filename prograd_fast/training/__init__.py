"""From a model and a set of pictures to a tuned prompt, its accuracies and a record of how it came about."""

from prograd_fast.clip import is_known_model, load_model
from prograd_fast.training.augmented import AugmentedFeatures
from prograd_fast.training.evaluate_run import RunEvaluation, evaluate_run, has_learned_from, held_out, lost_of_learned
from prograd_fast.training.evaluation import Evaluation
from prograd_fast.training.features import Features, encode_pictures, fingerprint_of, teacher_of
from prograd_fast.training.grid import Grid, run_grid
from prograd_fast.training.history import History
from prograd_fast.training.log import tensorboard
from prograd_fast.training.loop import tune
from prograd_fast.training.options import TrainOptions
from prograd_fast.training.predict import Predictions, picture_files, predict_files, read_class_names
from prograd_fast.training.progress import Bar, Track
from prograd_fast.training.protocol import Part, Plan, all_shots, make_plan, unlearned
from prograd_fast.training.record import Record, plan_facts, run_facts, run_record, setup_record, write_json
from prograd_fast.training.run import Run, accuracy_path, run_method
from prograd_fast.training.saved_run import (
    CHECKPOINT,
    RUN_FILES,
    difference_to,
    load_run,
    open_run,
    save_run,
)
from prograd_fast.training.train import check_start, train_method
from prograd_fast.training.transfer import OtherSet, TransferTest, other_sets

__all__ = [
    "CHECKPOINT",
    "RUN_FILES",
    "AugmentedFeatures",
    "Bar",
    "Evaluation",
    "Features",
    "Grid",
    "History",
    "OtherSet",
    "Part",
    "Plan",
    "Predictions",
    "Record",
    "Run",
    "RunEvaluation",
    "Track",
    "TrainOptions",
    "TransferTest",
    "accuracy_path",
    "all_shots",
    "check_start",
    "difference_to",
    "encode_pictures",
    "evaluate_run",
    "fingerprint_of",
    "has_learned_from",
    "held_out",
    "is_known_model",
    "load_model",
    "load_run",
    "lost_of_learned",
    "make_plan",
    "open_run",
    "other_sets",
    "picture_files",
    "plan_facts",
    "predict_files",
    "read_class_names",
    "run_facts",
    "run_grid",
    "run_method",
    "run_record",
    "save_run",
    "setup_record",
    "teacher_of",
    "tensorboard",
    "train_method",
    "tune",
    "unlearned",
    "write_json",
]
