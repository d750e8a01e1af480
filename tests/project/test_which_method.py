"""docs/which-method.md has the tables of its sources, and README's short answer is the page's."""

import csv

import pytest

from tests.paths import REPOSITORY
from tools import measured_methods, which_method
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
    """Clip art with 8 pictures alone and λ; emoji with 1 and 16. xERM knows no new classes. CoOp gains in each pair."""
    rows = []
    for seed in range(4):
        facts = {"set": "clipart", "shots": "8", "partition": "0", "seed": str(seed), "seconds": f"0.{seed}1"}
        own = {"zero-shot": (40, 30, 34), "xerm": (50, "", ""), "coop": (45 + 1.2 * seed, 20, 28)}
        for method, (base, new, harmonic) in own.items():
            start = base if method == "coop" else base + (seed if method == "zero-shot" else 0)
            accuracy = {"base": str(start), "new": str(new), "harmonic mean": str(harmonic), "conflict": "50"}
            rows.append(facts | accuracy | {"method": method, "lambda": "0.0" if method == "coop" else ""})
        rows.append({**rows[-1], "lambda": "1.0", "base": str(40 - seed), "new": "29"})
        for shots, method, base in (("1", "zero-shot", 40), ("1", "tip-adapter", 38), ("16", "zero-shot", 40)):
            rows.append(facts | {"set": "emoji", "method": method, "shots": shots, "base": str(base + seed % 2)})
    text = measured_methods.measured(rows)
    clipart, emoji = text.split("| emoji, ")
    assert "| clipart, up to 8 pictures per class | base | new | harmonic mean | seconds |" in clipart
    assert "| ProGrad | 38.5 ± 2.1 | 29.0 ± 0.0 | 28.0 ± 0.0 | 0.16 |" in clipart
    assert "| xERM | 50.0 ± 0.0 | - | - | 0.16 |" in clipart
    assert clipart.splitlines()[-7:-1] == [
        "- Above zero-shot on base classes with 8 pictures: xERM (+8.5 ± 2.1), CoOp (+5.3 ± 0.4).",
        "- Below zero-shot on new classes with 8 pictures: CoOp (−10.0 ± 0.0), ProGrad (−1.0 ± 0.0).",
        "- Above zero-shot in the harmonic mean with 8 pictures: none.",
        "- Projection (λ = 1) against none, base: higher in none; lower in CoOp (−8.3 ± 4.5).",
        "- Projection (λ = 1) against none, new: higher in CoOp (+9.0 ± 0.0); lower in none.",
        "- Projection (λ = 1) against none, harmonic mean: higher in none; lower in none.",
    ]
    assert emoji.startswith("up to 16 pictures per class | base | new | harmonic mean | base, one picture | seconds |")
    assert "- Above zero-shot on base classes with one picture: none." in emoji


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
