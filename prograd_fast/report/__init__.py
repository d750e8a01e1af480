"""Tables, figures and sentences from run records."""

from prograd_fast.report.compare import report_comparison
from prograd_fast.report.demo import report_demo, sentences
from prograd_fast.report.page import write_page
from prograd_fast.report.statistics import Spread, accuracies, paired
from prograd_fast.report.tables import accuracy_table

__all__ = ["Spread", "accuracies", "accuracy_table", "paired", "report_comparison", "report_demo", "sentences", "write_page"]
