"""docs/tutorial.md runs as it stands, and its outputs and pictures are those of its blocks."""

import re

import pytest
from PIL import Image

from tools import tutorial


def words(page: str) -> str:
    """A page without numbers, which differ by processor, and without the classes that were mistaken."""
    page = re.sub(r"(?<=pictures of ).* were taken for .*", "one were taken for another", page)
    return re.sub(r"\d+(\.\d+)?(e-\d+)?", "0", page)


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    page = tutorial.PAGE.read_text(encoding="utf-8")
    run, pictures = tutorial.run(page, tmp_path / "work")
    assert words(run) == words(page), "run python -m tools.tutorial"
    shown = re.findall(r"!\[.+\]\(images/tutorial/(\S+)\)", page)
    assert sorted(shown) == [picture.name for picture in pictures]
    for picture in pictures:
        stored = tutorial.IMAGES / picture.name
        with Image.open(picture) as new, Image.open(stored) as old:
            assert new.size == old.size
        assert stored.stat().st_size < 100_000  # they are in every clone
    assert (tmp_path / "work" / "report.html").stat().st_size > 10_000
