"""The study runs whole, in little; and the tables and sentences of docs/study/ are those of the committed runs."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from prograd_fast.clip.rows import RowTable
from prograd_fast.methods import GDA, METHODS, CoOp, TaskRes, ZeroShot
from prograd_fast.methods.base import feature_width
from prograd_fast.training import Features
from tests.paths import REPOSITORY
from tools.study import page, results
from tools.study.__main__ import study
from tools.study.entries import BUDGET, Entry, entries

STUDY = REPOSITORY / "docs" / "study"


@pytest.fixture(scope="module")
def tables():
    return page.tables_of(STUDY)


@pytest.mark.parametrize("title", ["projection", "counts", "counts at the same settings", "emoji", "clipart"])
def test_tables_of_the_page(title, tables):
    assert tables[title] in (STUDY / "README.md").read_text(encoding="utf-8")


def test_all_tables(tables):
    written = (STUDY / "tables.md").read_text(encoding="utf-8")
    assert all(f"## {title}\n\n{table}" in written for title, table in tables.items())


@pytest.mark.parametrize("name", ["accuracies.csv", "same-settings.csv"])
def test_accuracies_are_read_as_they_were_written(name, tmp_path):
    results.write(results.read(STUDY / name), tmp_path / name)
    assert (tmp_path / name).read_bytes() == (STUDY / name).read_bytes()


def test_every_entry_has_the_same_budget_and_starts_where_its_method_does():
    for entry in [entry for kind in METHODS for entry in entries(kind)]:
        candidates = entry.candidates()
        assert len(candidates) in (1, BUDGET)
        assert len({str(settings) for settings in candidates}) == len(candidates)
        assert [entry.method(**settings).name for settings in candidates] == [entry.kind.name] * len(candidates)


def test_whole_study_in_little(tmp_path, monkeypatch):
    """Two settings, two steps, one partition to choose by, two to test on; random features for those of pictures."""
    monkeypatch.setattr("tools.study.entries.STEPS", 2)
    monkeypatch.setattr("tools.study.selection.PARTITIONS", range(100, 101))
    every = Entry.candidates
    monkeypatch.setattr(Entry, "candidates", lambda entry: every(entry)[-2:])
    monkeypatch.setattr("tools.study.work.encode_pictures", random_features)
    methods = (ZeroShot, CoOp, TaskRes, GDA)
    study(tmp_path / "work", tmp_path / "docs", methods, partitions=2, processes=1)

    runs = results.read(tmp_path / "docs" / "accuracies.csv")
    at_16 = [(run["set"], run["method"], run["lambda"], run["partition"]) for run in runs if run["shots"] == 16]
    assert len(at_16) == len(set(at_16)) == 2 * 2 * (1 + 3 + 3 + 1)  # sets, partitions, entries
    assert {run["shots"] for run in runs if run["method"] == "coop" and run["lambda"] == 0.5} == {16}
    written = {path.name for path in (tmp_path / "docs").iterdir()}
    assert written == {"accuracies.csv", "same-settings.csv", "selection.md", "tables.md", "plane.png", "shots.png"}
    lines = (tmp_path / "docs" / "selection.md").read_text(encoding="utf-8").splitlines()
    assert sum("**" in line for line in lines) == 2 * (3 + 3)  # nothing to choose in zero-shot and GDA
    # a second time nothing is run: the file of runs stays as it is
    (file,) = (tmp_path / "work").glob("runs-*.jsonl")
    before = file.read_bytes()
    study(tmp_path / "work", tmp_path / "docs", methods, partitions=2, processes=1)
    assert file.read_bytes() == before


def random_features(clip, pictures, rows, cache=None):
    rows = np.unique(rows)
    width = feature_width(clip.model, clip.tokenizer)
    values = torch.randn(len(rows), width, generator=torch.Generator().manual_seed(0))
    return Features(pictures, rows, RowTable.of(F.normalize(values, dim=-1)))
