"""Tables, figures and sentences from run records."""

from prograd_fast.report.compare import report_comparison
from prograd_fast.report.demo import report_demo, sentences
from prograd_fast.report.evaluation import evaluation_record, evaluation_rows, report_evaluation
from prograd_fast.report.figures import curves_figure
from prograd_fast.report.folds import report_folds
from prograd_fast.report.page import write_page
from prograd_fast.report.predictions import (
    prediction_record,
    prediction_rows,
    predictions_table,
    write_predictions_page,
)
from prograd_fast.report.statistics import Spread, accuracies, paired
from prograd_fast.report.tables import TITLES, accuracy_table

__all__ = [
    "TITLES",
    "Spread",
    "accuracies",
    "accuracy_table",
    "curves_figure",
    "evaluation_record",
    "evaluation_rows",
    "paired",
    "prediction_record",
    "prediction_rows",
    "predictions_table",
    "report_comparison",
    "report_demo",
    "report_evaluation",
    "report_folds",
    "sentences",
    "write_page",
    "write_predictions_page",
]
