"""The tables of docs/study/ are those of the committed accuracies."""

from prograd_fast.report.tables import shots_rows
from tests.paths import REPOSITORY
from tools.study import differences, read_accuracies, write_accuracies

STUDY = REPOSITORY / "docs" / "study"
RUNS = read_accuracies(STUDY / "accuracies.csv")


def test_table_of_differences():
    assert differences(RUNS) in (STUDY / "README.md").read_text(encoding="utf-8")


def test_table_of_accuracies():
    lines = [line for line in (STUDY / "tables.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    header, _, *rows = [line.strip("| ").split(" | ") for line in lines]
    assert rows == shots_rows(RUNS, header[2:])


def test_accuracies_are_read_as_they_were_written(tmp_path):
    write_accuracies(RUNS, tmp_path / "accuracies.csv")
    assert (tmp_path / "accuracies.csv").read_bytes() == (STUDY / "accuracies.csv").read_bytes()
