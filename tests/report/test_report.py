"""Tables, sentences and pictures say what the run records say."""

import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from prograd_fast.data import EMOJI_UNSEEN_STYLES, PictureSet, load
from prograd_fast.methods import GradientMethod
from prograd_fast.report import accuracy_table, paired, report_demo, sentences
from prograd_fast.report.statistics import new_at_base
from prograd_fast.training import Grid
from tests.cli.support import run_here

METHODS = ("zero-shot", "linear-probe", "coop", "prograd")


def made_up(coop=(0.0, 0.0), prograd=(0.0, 0.0), spread=0.0) -> list[dict]:
    """Records of 2 x 2 runs; zero-shot is at 0.4 / 0.3, the others are above it by (base, new), ± `spread` in turn."""
    runs = []
    for partition in range(2):
        for seed in range(2):
            wobble = spread * (-1) ** (partition + seed)
            for method, (base, new) in zip(METHODS, [(0, 0), (0.1, 0), coop, prograd], strict=True):
                moved = wobble if method in ("coop", "prograd") else 0.0
                run = {
                    "method": method,
                    "partition": partition,
                    "seed": seed,
                    "shots": 16,
                    "trained_classes": ["a", "b"],
                    "accuracy": {"base": 0.4 + base + moved, "new": 0.3 + new + moved},
                }
                if method == "linear-probe":
                    del run["accuracy"]["new"]
                if method in ("coop", "prograd"):
                    # the first cosine is undefined; one run stopped a step early, one after its first step
                    cosine = [None, 0.5, -0.5, -0.25][: [[4, 3], [4, 1]][partition][seed]]
                    run |= {"steps": {"cosine": cosine}, "conflict_rate": 0.5 if len(cosine) > 1 else None}
                runs.append(run)
    return runs


def straight(**ends: tuple[float, float]) -> list[dict]:
    """Two paths of each method, in 3 steps from 0.4 / 0.3 to (base, new) above it; ± 0.02 cancels in their mean."""
    return [
        {
            "method": method,
            "accuracy": {
                step: {"base": 0.4 + base * step / 10 + wobble, "new": 0.3 + new * step / 10 - wobble}
                for step in (0, 5, 10)
            },
        }
        for wobble in (0.02, -0.02)
        for method, (base, new) in ends.items()
    ]


PATHS = straight(coop=(0.1, -0.1), prograd=(0.05, -0.02))


def test_sentences_tell_a_gain_and_a_loss():
    first, second, third, fourth = sentences(made_up(coop=(0.09, -0.05), prograd=(0.04, -0.004)), PATHS)
    assert first == (
        "Against zero-shot, CoOp gained 9.0 (se 0.0) on base classes and lost 5.0 (se 0.0) on new ones; "
        "ProGrad gained 4.0 (se 0.0) and lost 0.4 (se 0.0)."
    )
    assert second == (
        "ProGrad was above CoOp on new classes in 4 of 4 runs (+4.6 on average, se 0.0) "
        "and on base classes in 0 (-5.0 on average, se 0.0)."
    )
    assert third == (  # CoOp is there half-way, at 25.0; ProGrad at its end, at 28.0
        "When both first reach 45.0 % on base classes, ProGrad has 3.0 points more on new ones than CoOp stopped there."
    )
    assert "paired over 4 runs" in fourth


def test_the_sentence_on_paths_tells_the_opposite_and_paths_that_never_gain():
    *_, third, _ = sentences(made_up(), straight(coop=(0.1, 0.1), prograd=(0.1, -0.1)))
    assert third.startswith("When both first reach 50.0 % on base classes, ProGrad has 20.0 points less")
    never = "At no step is the path of {} above the untouched model on base classes"
    never += ", so that stopping early gains nothing."
    *_, third, _ = sentences(made_up(), straight(coop=(0.1, -0.1), prograd=(-0.1, -0.1)))
    assert third == f"{never.format('ProGrad')} CoOp's reaches 50.0 %, with 20.0 % on new ones."
    *_, third, _ = sentences(made_up(), straight(coop=(-0.1, -0.1), prograd=(0.1, -0.02)))
    assert third == f"{never.format('CoOp')} ProGrad's reaches 50.0 %, with 28.0 % on new ones."
    *_, third, _ = sentences(made_up(), straight(coop=(-0.1, -0.1), prograd=(0, -0.1)))
    assert third == never.format("CoOp or ProGrad")


def test_where_a_path_first_reaches_an_accuracy():
    path = [(40.0, 30.0), (44.0, 28.0), (42.0, 20.0), (48.0, 14.0)]
    assert [new_at_base(path, base) for base in (39, 40, 42, 44, 46, 48)] == [30, 30, 29, 28, 16, 14]
    with pytest.raises(ValueError, match="no point of the path has 49"):
        new_at_base(path, 49)


def test_sentences_tell_the_opposite_where_the_numbers_are_opposite():
    first, second, *_ = sentences(made_up(coop=(-0.02, 0.03), prograd=(-0.05, -0.01)), PATHS)
    assert "CoOp lost 2.0 (se 0.0) on base classes and gained 3.0" in first
    assert "ProGrad lost 5.0 (se 0.0) and lost 1.0" in first
    assert "on new classes in 0 of 4 runs (-4.0 on average" in second
    assert "on base classes in 0 (-3.0 on average" in second


def test_sentences_call_what_is_within_two_standard_errors_undecided():
    # ± 6 points in turn over 4 runs: standard deviation 6.93, standard error 3.46: 5 points are undecided, 9 are not
    first, second, *_ = sentences(made_up(coop=(0.09, 0.05), prograd=(0.09, 0.05), spread=0.06), PATHS)
    assert "gained 9.0 (se 3.5) on base classes and gained 5.0 (se 3.5, undecided) on new ones" in first
    assert "in 0 of 4 runs (+0.0 on average, se 0.0)" in second


def test_pairs_are_of_the_same_partition_and_seed():
    runs = made_up(prograd=(0.1, 0.1))
    shuffled = sorted(runs, key=lambda run: (run["method"] == "prograd", -run["seed"], run["partition"]))
    for run in shuffled:
        run["accuracy"]["base"] += 0.2 * run["partition"] + 0.1 * run["seed"]  # what both methods share cancels
    difference = paired(shuffled, "prograd", "zero-shot", "base")
    assert (difference.mean, difference.se) == (pytest.approx(10), pytest.approx(0, abs=1e-9))
    assert (difference.higher, difference.n) == (4, 4)


def test_one_run_has_no_standard_error():
    one = [run for run in made_up(coop=(0.1, 0.1)) if run["partition"] == run["seed"] == 0]
    assert paired(one, "coop", "zero-shot", "base").undecided
    assert "se nan, undecided" in sentences(one, PATHS)[0]


def test_methods_without_a_common_run():
    runs = [run for run in made_up() if (run["method"] == "coop") == (run["seed"] == 0)]
    with pytest.raises(ValueError, match="no run of 'coop' has a partner of 'zero-shot'"):
        paired(runs, "coop", "zero-shot", "base")


def printed(what) -> str:
    stream = io.StringIO()
    Console(file=stream, width=100).print(what)
    return stream.getvalue()


def test_table_has_mean_and_standard_deviation():
    text = printed(accuracy_table(made_up(coop=(0.09, 0), spread=0.06), ["base", "new"]))
    rows = {cells[1]: cells[2:-1] for line in text.splitlines() if len(cells := re.split(r"\s*│\s*", line)) > 1}
    assert re.findall(r"[A-Za-z]\S+(?: [a-z]+)?", text.splitlines()[1]) == [
        "test",
        "zero-shot",
        "linear probe",
        "CoOp",
        "ProGrad",
    ]
    assert rows["base"] == ["40.0 ± 0.0", "50.0 ± 0.0", "49.0 ± 6.9", "40.0 ± 6.9"]
    assert rows["new"] == ["30.0 ± 0.0", "-", "30.0 ± 6.9", "30.0 ± 6.9"]  # the probe cannot name new classes


def test_table_of_one_run_has_no_deviation():
    text = printed(accuracy_table(made_up()[:1], ["base"]))
    assert "40.0" in text
    assert "±" not in text


def test_demo_writes_its_three_files_and_nothing_else(tmp_path):
    results = {"data": {"class_names": list("abcd")}, "runs": made_up(coop=(0.1, -0.1)), "paths": PATHS}
    for run in results["runs"]:
        run["accuracy"] |= {"openmoji/base": 0.5, "fluent-hc/base": 0.5}
    for _ in range(2):  # the second run replaces the files of the first
        stream = io.StringIO()
        report_demo(results, tmp_path, Console(file=stream, width=100))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["conflict.png", "plane.png", "results.json"]
    written = json.loads((tmp_path / "results.json").read_text())
    said = sentences(results["runs"], results["paths"])
    assert written == json.loads(json.dumps({**results, "conclusions": said}))
    for name in ("plane.png", "conflict.png"):
        with Image.open(tmp_path / name) as image:
            assert image.width > 1000
            assert len(image.convert("RGB").getcolors(1 << 24)) > 20  # something is drawn
    text = " ".join(stream.getvalue().split())
    assert "CoOp gained 10.0" in text
    assert "openmoji/base" in text


def classes_of(pictures: PictureSet, n: int) -> PictureSet:
    """The first n classes of a set."""
    rows = np.flatnonzero(pictures.labels < n)
    source = [pictures.source[row] for row in rows]
    columns = (pictures.labels[rows], pictures.split[rows], pictures.style[rows])
    return PictureSet(pictures.name, pictures.class_names[:n], *columns, source)


def test_demo_on_a_slice_of_emoji(tmp_path, monkeypatch, capfd):
    """The command on a few classes, with one run of 5 steps for each method: tables and figures of real pictures."""

    def small_grid(methods, **_) -> Grid:
        methods = [replace(method, epochs=5) if isinstance(method, GradientMethod) else method for method in methods]
        return Grid(methods, shots=[2], seeds=1, partitions=1)

    monkeypatch.setattr("prograd_fast.data.load", lambda name: classes_of(load(name), 12))
    monkeypatch.setattr("prograd_fast.training.Grid", small_grid)
    assert run_here(monkeypatch, "demo", "--out", tmp_path, "--device", "cpu", "--no-cache") == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["conflict.png", "plane.png", "results.json"]
    results = json.loads((tmp_path / "results.json").read_text())
    zero_shot = results["runs"][0]["accuracy"]
    ends = {run["method"]: run["accuracy"] for run in results["runs"]}
    for path in results["paths"]:  # from the untouched model to the trained one
        assert path["accuracy"] == {"0": zero_shot, "5": ends[path["method"]]}
    assert {path["method"] for path in results["paths"]} == {"coop", "prograd"}
    assert zero_shot.keys() == {"validation", "base", "new", "harmonic mean"} | {
        f"{style}/{half}" for style in EMOJI_UNSEEN_STYLES for half in ("base", "new")
    }
    n_classes = len(results["data"]["class_names"])
    assert min(zero_shot["base"], zero_shot["new"]) > 2 / (n_classes / 2)  # twice as good as guessing among a half
    assert "fluent-hc/new" in capfd.readouterr().out
