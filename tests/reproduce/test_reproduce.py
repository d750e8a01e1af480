"""`reproduce` runs every table on miniature copies of every set, goes on where it was killed, and compares."""

import csv
import json
from pathlib import Path

import pytest

from prograd_fast.methods import method_kind
from prograd_fast.reproduce import DOMAINS, SETS, Reproduction, rows_of
from prograd_fast.training import loop
from prograd_fast.training.checkpoint import Checkpoints
from tests.cli.support import fail, run_here
from tests.data import layouts


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """All sets; tests only read it."""
    return layouts.make_all(tmp_path_factory.mktemp("benchmark"))


@pytest.fixture
def run(root, clip_dir, monkeypatch):
    """The command on the tiny model, without a cache; its exit code."""

    def command(*arguments) -> int:
        model = ["--root", root, "--model", f"local-dir:{clip_dir}", "--no-cache"]
        return run_here(monkeypatch, "reproduce", *arguments, *model)

    return command


def table(out: Path) -> list[dict[str, str]]:
    """The lines of the table, of which there is one."""
    (found,) = set(out.glob("*.csv")) - set(out.glob("*-plan.csv")) - set(out.glob("*-pictures.csv"))
    with found.open(newline="") as file:
        return list(csv.DictReader(file))


def runs(out: Path) -> list[dict]:
    (found,) = out.glob("*.json")
    return json.loads(found.read_text())["runs"]


def page(out: Path) -> str:
    """The table in Markdown, with the sentences under it."""
    (found,) = out.glob("*.md")
    return found.read_text()


def test_few_shot_on_all_sets(run, tmp_path, capfd):
    """GDA: no steps, and it chooses its weight on validation pictures, where a set has some."""
    assert run("gda", "--table", "few-shot", "--shots", "1,2", "--seeds", "1", "--out", tmp_path) == 0
    found = table(tmp_path)
    names = [*SETS, "average of 11"]
    keys = dict.fromkeys((row["set"], row["shots"]) for row in found)
    assert list(keys) == [(name, str(k)) for k in (1, 2) for name in names]
    assert {row["published with"] for row in found if row["set"] == names[-1]} == {"RN50", "ViT-B/16"}
    for row in found:
        if row["set"] == "average of 11":
            own = [float(other["ours"]) for other in found if other["shots"] == row["shots"] and other != row]
            assert float(row["ours"]) == pytest.approx(sum(own[:11]) / 11)
    chosen = {record["dataset"]: record.get("chosen") for record in runs(tmp_path) if record["shots"] == 2}
    assert chosen.pop("imagenet") is None
    assert {one["validation_pictures"] for one in chosen.values()} == {2}  # min(shots, 4) of each class; each has one
    assert {name for one in chosen.values() for name in one["values"]} == {"alpha"}
    said = capfd.readouterr().out
    text = page(tmp_path)
    for line in ("eurosat, 2 shots: alpha chosen on 2 validation pictures: alpha ", "imagenet, 1 shots: no validation"):
        assert line in said
        assert line in text
    assert "dtd has 2 classes here, and 47 as published." in text


def test_base_to_new_on_all_sets(run, tmp_path):
    """The first half of the classes is learned; zero-shot stands for methods that take no pictures."""
    assert run("zero-shot", "--table", "base-to-new", "--seeds", "1,2", "--out", tmp_path) == 0
    found = table(tmp_path)
    assert [row["set"] for row in found if row["what"] == "h"] == [*SETS, "average of 11"]
    assert {record["dataset"]: record["trained_classes"] for record in runs(tmp_path)} == {
        name: classes[: (len(classes) + 1) // 2] for name, classes in class_names(tmp_path, run).items()
    }
    average = {row["what"]: row for row in found if row["set"] == "average of 11"}
    base, new = (float(average[metric]["ours"]) for metric in ("base", "new"))
    assert float(average["h"]["ours"]) == pytest.approx(2 * base * new / (base + new))
    for metric, published in (("base", 69.34), ("new", 74.22), ("h", 71.70)):
        row = average[metric]
        assert float(row["published"]) == published
        assert float(row["difference"]) == pytest.approx(float(row["ours"]) - published)
        assert row["published with"] == "ViT-B/16"
        assert "HealthX-Lab/CLIP-SVD" in row["source"]


def class_names(out, run) -> dict[str, list[str]]:
    """The classes of every set, from the runs of the table few-shot."""
    assert run("zero-shot", "--table", "few-shot", "--seeds", "1", "--out", out / "all") == 0
    return {record["dataset"]: record["trained_classes"] for record in runs(out / "all")}


@pytest.mark.parametrize(("name", "others"), [("cross-dataset", SETS[1:]), ("domain", DOMAINS)])
def test_learn_imagenet_and_test_elsewhere(run, tmp_path, name, others):
    """CoCoOp, which the protocol is from: pictures one by one, context moved by each."""
    options = ["--shots", "1", "--seeds", "1", "--plain", "--out", tmp_path]
    assert run("cocoop", "--table", name, *options) == 0
    found = table(tmp_path)
    assert [row["set"] for row in found] == ["imagenet", *others, f"average of {len(others)} targets"]
    (record,) = runs(tmp_path)
    assert record["pictures"]["train"] == 4
    assert record["accuracy"].keys() == {"all", *others}
    assert [float(row["ours"]) for row in found[:-1]] == [
        100 * record["accuracy"]["all" if row["set"] == "imagenet" else row["set"]] for row in found[:-1]
    ]
    assert "Not as published: the method sees pictures as they are." in page(tmp_path)


def test_a_method_that_names_no_new_classes_is_tested_where_the_classes_are_the_same(run, tmp_path, capfd):
    """ImageNet-V2 and -Sketch have ImageNet's classes; -A and -R have some of them. The plan says so before."""
    line = "Not tested on imagenet_a, imagenet_r: linear probe knows no classes but those that it learned."
    options = ["linear-probe", "--shots", "1", "--seeds", "1", "--out", tmp_path]
    assert run(*options, "--table", "domain", "--plan") == 0
    said = capfd.readouterr().out
    assert line in said
    assert "tested on imagenetv2, imagenet_sketch too;" in said
    assert run(*options, "--table", "domain") == 0
    (record,) = runs(tmp_path)
    assert record["accuracy"].keys() == {"all", "imagenetv2", "imagenet_sketch"}
    assert [row["set"] for row in table(tmp_path)] == [
        "imagenet",
        "imagenetv2",
        "imagenet_sketch",
        "average of 2 targets",
    ]
    text = page(tmp_path)
    for told in (line, *(f"{name} has 2 classes here, and 200 as published." for name in ("imagenet_a", "imagenet_r"))):
        assert told in text


def test_base_to_new_of_a_method_that_names_no_new_classes(run, tmp_path):
    options = ["--datasets", "dtd", "--shots", "1", "--seeds", "1", "--out", tmp_path]
    assert run("linear-probe", "--table", "base-to-new", *options) == 0
    assert [row["what"] for row in table(tmp_path)] == ["base"]
    assert "Not tested on new classes: linear probe knows no classes but those that it learned." in page(tmp_path)


def test_killed_and_started_again(run, tmp_path, monkeypatch):
    """The same numbers, and no step twice: what is finished is not run, what was begun goes on."""
    options = ["cocoop", "--table", "base-to-new", "--datasets", "dtd,imagenet", "--shots", "1", "--seeds", "1,2"]
    taken = count_steps(monkeypatch)
    assert run(*options, "--out", tmp_path / "whole") == 0
    all_steps = len(taken)
    assert all_steps == 2 * 10 * 1 + 2 * 10 * 2  # ten epochs, picture by picture, of one and of two base classes

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "due", True)
        stopped = count_steps(patch, stop_at=15)  # in the second run
        assert run(*options, "--out", tmp_path / "again") == 130
    assert [file.name for file in sorted((tmp_path / "again/runs/base-to-new/dtd").iterdir())] == [
        "cocoop-1shots-seed1.json",
        "cocoop-1shots-seed2.safetensors",
    ]
    taken.clear()
    assert run(*options, "--out", tmp_path / "again") == 0
    assert len(stopped) + len(taken) == all_steps
    for end in (".csv", "-pictures.csv", "-plan.csv"):
        again, whole = ((tmp_path / name / f"cocoop-base-to-new{end}").read_text() for name in ("again", "whole"))
        assert again == whole
    taken.clear()
    assert run(*options, "--out", tmp_path / "again") == 0
    assert not taken


def count_steps(monkeypatch, stop_at=None) -> list[int]:
    """A list that gets an entry for each training step; with `stop_at`, the process ends before the next."""
    step, taken = loop.update, []

    def counted(*args):
        if len(taken) == stop_at:
            raise KeyboardInterrupt
        taken.append(1)
        return step(*args)

    monkeypatch.setattr(loop, "update", counted)
    return taken


def test_another_protocol_in_the_same_folder_is_refused(run, tmp_path, capfd, monkeypatch, root, clip_dir):
    options = ["reproduce", "taskres", "--table", "few-shot", "--datasets", "dtd", "--shots", "1", "--seeds", "1"]
    model = ["--root", root, "--model", f"local-dir:{clip_dir}", "--no-cache", "--out", tmp_path]
    assert run_here(monkeypatch, *options, *model, "--plain") == 0
    assert "is a run of another grid" in fail(capfd, monkeypatch, *options, *model)


def test_published_lists(run, root, tmp_path):
    """The list has the third picture of one class, and the first of the other."""
    folder = root / "eurosat" / "split_fewshot"
    folder.mkdir()
    pictures = {"train": ["AnnualCrop_2", "Forest_0"], "val": ["AnnualCrop_3", "Forest_3"]}
    for part, files in pictures.items():
        lines = [
            json.dumps({"_impath": f"/data/eurosat/2750/{name[:-2]}/{name}.jpg", "_label": label})
            for label, name in enumerate(files)
        ]
        (folder / f"shot_1-seed_1_{part}.jsonl").write_text("\n".join(lines))
    options = ["--datasets", "eurosat", "--shots", "1", "--seeds", "1", "--lists", "--out", tmp_path]
    assert run("tip-adapter", "--table", "few-shot", *options) == 0
    with (tmp_path / "tip-adapter-few-shot-pictures.csv").open(newline="") as file:
        found = [(row["part"], Path(row["picture"]).stem) for row in csv.DictReader(file)]
    assert found == [("train", name) for name in pictures["train"]] + [("validation", name) for name in pictures["val"]]
    (record,) = runs(tmp_path)
    assert record["chosen"]["values"].keys() == {"alpha", "beta"}
    assert "the lists in split_fewshot/" in page(tmp_path)


def test_a_plan_alone_runs_nothing(run, tmp_path, capfd):
    """Not even the model is there."""
    assert run("prograd", "--table", "base-to-new", "--plan", "--out", tmp_path) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "prograd-base-to-new-pictures.csv",
        "prograd-base-to-new-plan.csv",
    ]
    assert "a centered satellite photo of" in (tmp_path / "prograd-base-to-new-plan.csv").read_text(encoding="utf-8")
    said = capfd.readouterr().out
    assert "Base classes are the first half of the labels, rounded up; the others are new." in said


def test_sets_that_are_not_there(tmp_path, capfd, monkeypatch, clip_dir):
    layouts.make_split(tmp_path / "data", "dtd")
    options = [
        "reproduce",
        "coop",
        "--table",
        "few-shot",
        "--model",
        f"local-dir:{clip_dir}",
        "--out",
        tmp_path / "out",
    ]
    line = fail(capfd, monkeypatch, *options, "--root", tmp_path / "data", "--datasets", "dtd,sun397")
    assert "sun397: files are missing in" in line
    assert "data check sun397" in line


@pytest.mark.parametrize(
    ("name", "sets", "published", "average"),
    [
        ("cross-dataset", SETS, {"imagenet": 71.02, "eurosat": 45.37}, ("average of 10 targets", 65.74)),
        ("domain", ("imagenet", *DOMAINS), {"imagenet": 71.02, "imagenet_a": 50.63}, ("average of 4 targets", 59.90)),
    ],
)
def test_transfer_has_published_numbers(root, name, sets, published, average):
    """CoCoOp's, set by set, and the average without the set that is learned."""
    reproduction = Reproduction(method_kind("cocoop"), name, root, seeds=[1])
    accuracy = {"all": 0.5} | dict.fromkeys(sets[1:], 0.25)
    rows = rows_of(reproduction, [{"dataset": "imagenet", "shots": 16, "seed": 1, "accuracy": accuracy}])
    found = {row.dataset: row for row in rows}
    assert all(found[key].published.value == value for key, value in published.items())
    assert found[average[0]].published.value == average[1]
    assert found[average[0]].difference == pytest.approx(25 - average[1])
    assert found["imagenet"].difference == pytest.approx(50 - 71.02)


def test_a_set_without_test_pictures_is_refused_before_anything_is_run(tmp_path, capfd, monkeypatch, clip_dir):
    layouts.make_split(tmp_path, "dtd")
    file = tmp_path / "dtd" / "split_zhou_DescribableTextures.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"test": []}))
    options = ["reproduce", "coop", "--table", "few-shot", "--datasets", "dtd", "--root", tmp_path]
    line = fail(capfd, monkeypatch, *options, "--model", f"local-dir:{clip_dir}", "--out", tmp_path / "out")
    assert "dtd: it has no picture for the test" in line


def test_the_average_has_every_source(root):
    """Two rows for two published pairs that contradict each other; the difference is to each."""
    reproduction = Reproduction(method_kind("dept"), "base-to-new", root, shots=[16], seeds=[1])
    records = [
        {"dataset": name, "shots": 16, "seed": 1, "accuracy": {"base": 0.8, "new": 0.6}, "left_out": {}}
        for name in SETS
    ]
    found = [row for row in rows_of(reproduction, records) if row.dataset == "average of 11" and row.metric == "h"]
    assert [row.published.value for row in found] == [77.97, 79.10]
    h = 2 * 80 * 60 / 140
    assert [row.difference for row in found] == pytest.approx([h - 77.97, h - 79.10])
