"""The pages hold: their Python examples run, and the files that they name exist."""

import re

import pytest

from tests.optim.frameworks import IGNORED, accelerators_forgotten
from tests.paths import REPOSITORY

# the changelog names files that are gone
PAGES = sorted({*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")} - {REPOSITORY / "CHANGELOG.md"})
# A path from the repository's root, such as `tests/ops/`; of `csrc/cuda/projection.*` some file exists. A colon follows
# the name of a file that the reader is to write.
PATH = re.compile(r"`((?:benchmarks|csrc|docs|prograd_fast|tests|tools)/[\w./*-]*)`(?!:)")
EXAMPLES = [
    pytest.param(code, id=f"{page}-{number}")
    for page in ("README.md", "docs/training-loop.md", "docs/integrations.md")
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", (REPOSITORY / page).read_text("utf-8"), re.DOTALL))
]


@pytest.mark.filterwarnings(*IGNORED)
@pytest.mark.parametrize("code", EXAMPLES)
def test_example(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    with accelerators_forgotten():
        exec(compile(code, "page", "exec"), {"__name__": "page"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_files_exist(page):
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    links = [link for link in re.findall(r"\]\(([^)#]+)[)#]", text) if not link.startswith("http")]
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert [path for path in PATH.findall(text) if not any(REPOSITORY.glob(path.rstrip("/")))] == []


def test_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text("utf-8").splitlines()) <= 150
