"""docs/which-method.md has the tables of its sources, and README's short answer is the page's."""

import csv

import pytest

from tests.paths import REPOSITORY
from tools import which_method
from tools.blocks import write_blocks

DOCS = REPOSITORY / "docs"
PUBLISHED = which_method.read(which_method.PUBLISHED)


def published(method: str, value: str, source: str = "a", **other: str) -> dict[str, str]:
    row = {"method": method, "table": "few-shot", "dataset": "average of 11", "shots": "16", "backbone": "ViT-B/16"}
    return row | {"metric": "accuracy", "value": value, "source": source, "note": ""} | other


@pytest.mark.parametrize("name", which_method.blocks())
def test_the_page_is_that_of_its_sources(name):
    page = which_method.PAGE.read_text(encoding="utf-8")
    block = f"<!-- {name}: written by {which_method.COMMAND} -->\n{which_method.blocks()[name].rstrip()}\n<!-- end"
    assert block in page, f"run {which_method.COMMAND}"


def test_readme_has_the_short_answer():
    assert which_method.aims(PUBLISHED) in (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_of_conflicting_numbers_the_lowest_counts():
    rows = [published("gda", "80"), published("tcp", "90", "a"), published("tcp", "70", "b"), published("mma", "99")]
    found = which_method.values(rows, "few-shot", "16", "accuracy")
    assert which_method.leaders(found, 3) == ["gda", "tcp"]  # the library has no MMA
    assert which_method.number(found["tcp"]) == "70.0 or 90.0"
    assert "| TCP | few-shot, average of 11, 16 pictures, ViT-B/16, accuracy | 90 (a); 70 (b) |" in (
        which_method.conflicts(rows)
    )


def test_another_form_of_a_method_is_not_the_librarys():
    found = which_method.values([published("promptsrc", "90")], "few-shot", "16", "accuracy")
    assert which_method.leaders(found, 3) == []


def test_a_study_of_several_sets_and_lambdas():
    """Two sets, one with λ in two forms; CoOp gains in each pair, its λ = 1 in no surely; a method without new."""
    rows = []
    for seed in range(4):
        facts = {"set": "clipart", "shots": "8", "partition": "0", "seed": str(seed), "lambda": ""}
        rows += [
            facts | {"method": "zero-shot", "base": str(40 + seed), "new": "30", "harmonic mean": "34"},
            facts | {"method": "coop", "base": str(45 + seed + 0.1 * seed), "new": "20", "harmonic mean": "28"},
            facts | {"method": "coop", "lambda": "1", "base": str(40 - seed), "new": "30", "harmonic mean": "34"},
            facts | {"method": "xerm", "base": "50", "new": "", "harmonic mean": ""},
        ]
    rows.append({**rows[0], "set": "emoji"})
    text = which_method.study(rows)
    assert "| clipart, up to 8 pictures per class | base | new | harmonic mean | base, 8 pictures |" in text
    assert "| CoOp λ = 1 | 38.5 ± 2.1 | 30.0 ± 0.0 | 34.0 ± 0.0 | 38.5 ± 2.1 |" in text
    assert "| xERM | 50.0 ± 0.0 | - | - | 50.0 ± 0.0 |" in text
    above, below, harmonic, few = [line for line in text.splitlines() if line.startswith("- ")][:4]
    assert above == few  # 8 are the fewest and the most here
    assert "xERM (+8.5 ± 2.1), CoOp (+5.2 ± 0.2)." in above
    assert below.endswith("CoOp (−10.0 ± 0.0).")
    assert harmonic.endswith(": none.")
    assert "| emoji, up to 8 pictures per class |" in text


def test_a_page_without_the_block_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- one: written by x -->\nold\n<!-- end of one -->\n")
    write_blocks(page, {"one": "new\n"}, "x")
    assert page.read_text() == "<!-- one: written by x -->\nnew\n<!-- end of one -->\n"
    with pytest.raises(ValueError, match="two: written by x"):
        write_blocks(page, {"two": "new"}, "x")


def test_which_harmonic_means_are_not_those_of_their_averages():
    """As docs/numbers-that-differ.md says: the others agree but for rounding; these are lower."""
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in PUBLISHED:
        if (row["table"], row["dataset"]) == ("base-to-new", "average of 11"):
            key = row["method"], row["source"], row["note"]
            found.setdefault(key, {})[row["metric"]] = float(row["value"])
    apart = {}
    for (method, *_), of in found.items():
        gap = of["h"] - 2 * of["base"] * of["new"] / (of["base"] + of["new"])
        if abs(gap) > 0.02:  # three numbers, each rounded to 0.01
            apart[method] = gap
    page = (DOCS / "numbers-that-differ.md").read_text(encoding="utf-8")
    (table,) = [part for part in page.split("\n\n") if part.startswith("| printed by |")]
    rows = list(csv.reader(table.splitlines()[2:], delimiter="|"))
    assert {row[1].strip(): float(row[5].replace("−", "-")) for row in rows} == {
        which_method.title(method): pytest.approx(gap, abs=0.006) for method, gap in apart.items()
    }
    assert max(apart.values()) < 0
