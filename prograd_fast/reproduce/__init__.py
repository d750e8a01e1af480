"""The tables of the field's papers, run again: published settings, draws and classes, and the published numbers."""

from prograd_fast.reproduce.plan import Planned, planned_runs, write_plan
from prograd_fast.reproduce.protocol import DOMAINS, SEEDS, SETS, SHOTS, TABLES, Reproduction
from prograd_fast.reproduce.results import Row, notes, rows_of, write_results
from prograd_fast.reproduce.run import reproduce
from prograd_fast.reproduce.settings import Chosen, published_settings

__all__ = [
    "DOMAINS",
    "SEEDS",
    "SETS",
    "SHOTS",
    "TABLES",
    "Chosen",
    "Planned",
    "Reproduction",
    "Row",
    "notes",
    "planned_runs",
    "published_settings",
    "reproduce",
    "rows_of",
    "write_plan",
    "write_results",
]
