"""Tables, figures and sentences from run records."""

from prograd_fast.report.compare import report_comparison
from prograd_fast.report.demo import report_demo
from prograd_fast.report.figures import accuracy_figure, conflict_figure
from prograd_fast.report.summary import Paired, accuracies, mean_and_sd, paired, sentences
from prograd_fast.report.table import accuracy_table

__all__ = [
    "Paired",
    "accuracies",
    "accuracy_figure",
    "accuracy_table",
    "conflict_figure",
    "mean_and_sd",
    "paired",
    "report_comparison",
    "report_demo",
    "sentences",
]
