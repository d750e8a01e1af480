"""A run's record and what was learned belong together: whole, undamaged, of one run, and resumed only by the same."""

import itertools
import json
import os
import shutil
from pathlib import Path
from random import Random

import pytest
import torch

import prograd_fast as pf
from prograd_fast import cli
from prograd_fast.methods import CoOp, LinearProbe, ProGradCoOp
from prograd_fast.training import RUN_FILES, Grid, load_run, run_grid, save_run
from prograd_fast.training import grid as grids
from prograd_fast.training.record import seal, unseal
from tests.cli.support import fail, run_here, stopped_run
from tests.conftest import draw, draw_shapes
from tests.fuzz.files import damaged, refused_in_one_line
from tests.processes import Forked
from tests.training.support import accuracies, no_bars, train_once

RECORD, PROMPT = RUN_FILES


@pytest.fixture(scope="module")
def runs(clip, shapes) -> list:
    """Two runs of the same form: record and learner of each."""
    return [train_once(clip, shapes, ProGradCoOp(epochs=4, lr=lr)) for lr in (0.03, 0.3)]


def settings(folder: Path) -> float:
    """Which of the two runs a folder holds; that the prompt is the same run's is looked at too."""
    record, learned = load_run(folder)
    prompt = pf.clip.load_prompt(folder / PROMPT) if (folder / PROMPT).exists() else None
    if prompt is not None and torch.equal(prompt.ctx, learned["ctx"]):
        assert prompt.metadata["settings"]["lr"] == record["settings"]["lr"]
    return record["settings"]["lr"]


# -------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("name", RUN_FILES)
def test_damage_is_noticed_or_harmless(runs, tmp_path, name, caplog):
    save_run(tmp_path, *runs[0])
    record, learned = load_run(tmp_path)
    content, file = (tmp_path / name).read_bytes(), tmp_path / name
    harmless = 0
    for seed in range(300):
        file.write_bytes(damaged(content, Random(seed)))
        caplog.clear()
        with refused_in_one_line():
            read, tensors = load_run(tmp_path)
            assert read == record or "has been changed" in caplog.text
            assert tensors.keys() == learned.keys()
            assert all(torch.equal(tensors[key], learned[key]) for key in learned)
            harmless += not caplog.text
    assert harmless < 50


@pytest.mark.parametrize("name", RUN_FILES)
def test_files_of_two_runs_are_no_run(runs, tmp_path, name, capfd, monkeypatch):
    save_run(tmp_path / "one", *runs[0])
    save_run(tmp_path / "two", *runs[1])
    shutil.copy(tmp_path / "two" / name, tmp_path / "one" / name)
    assert "are of two runs" in fail(capfd, monkeypatch, "predict", tmp_path / "one", "x.png")


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record["accuracy"].update(base=1.0),
        lambda record: record["settings"].update(lr=0.04),
        lambda record: record["trained_classes"].reverse(),
        lambda record: record["model"].update(device="cuda"),
        lambda record: record.update(note="mine"),
        lambda record: record.pop("created"),
        lambda record: record["steps"]["task_loss"].pop(),
    ],
)
def test_a_changed_record_is_told(runs, tmp_path, change, caplog):
    save_run(tmp_path, *runs[0])
    record = json.loads((tmp_path / RECORD).read_text())
    change(record)
    (tmp_path / RECORD).write_text(json.dumps(record))
    assert load_run(tmp_path)[0] == {name: value for name, value in record.items() if name != "learned"}
    assert "record.json has been changed since the run was written" in caplog.text


@pytest.mark.parametrize("digest", [None, "", "0" * 64, 3, []])
def test_a_record_needs_the_digest_of_what_was_learned(runs, tmp_path, digest):
    save_run(tmp_path, *runs[0])
    record = json.loads((tmp_path / RECORD).read_text())
    (tmp_path / RECORD).write_text(json.dumps(record | {"learned": digest}))
    with pytest.raises(ValueError, match=r"the digest in the record|record.json: learned is"):
        load_run(tmp_path)


def test_a_record_may_be_laid_out_anew(runs, tmp_path, caplog):
    save_run(tmp_path, *runs[0])
    record = json.loads((tmp_path / RECORD).read_text())
    (tmp_path / RECORD).write_text(json.dumps(dict(reversed(record.items()))))
    assert load_run(tmp_path)[0] == {name: value for name, value in record.items() if name != "learned"}
    assert not caplog.text


# ----------------------------------------------------------------------------------------------------------- replacing


@pytest.mark.parametrize("call", range(12))
@pytest.mark.parametrize(
    "how", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "interrupt"]
)
def test_a_replacement_that_fails_leaves_one_of_the_two(runs, tmp_path, monkeypatch, call, how):
    save_run(tmp_path, *runs[0])
    done = [0]

    def failing(function):
        def call_it(*args, **options):
            done[0] += 1
            if done[0] > call:
                raise how
            return function(*args, **options)

        return call_it

    with monkeypatch.context() as patch:  # whatever writes, fails from some call on
        for owner, name in ((os, "replace"), (os, "fsync"), (Path, "write_bytes"), (Path, "write_text")):
            patch.setattr(owner, name, failing(getattr(owner, name)))
        failed = None
        try:
            save_run(tmp_path, *runs[1])
        except (OSError, KeyboardInterrupt) as error:
            failed = error
    assert settings(tmp_path) in ((0.03, 0.3) if failed else (0.3,))
    if call < 6:  # before the record's renaming
        assert settings(tmp_path) == 0.03
        assert isinstance(failed, KeyboardInterrupt) or str(tmp_path) in str(failed)
    save_run(tmp_path, *runs[1])
    assert settings(tmp_path) == 0.3
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([RECORD, PROMPT])


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_killed_replacement_leaves_one_of_the_two(runs, tmp_path, at):
    save_run(tmp_path / "run", *runs[0])

    def killed_at_a_renaming() -> None:
        replace, calls = os.replace, itertools.count(1)

        def replace_or_end(*paths) -> None:
            if next(calls) == at:
                os._exit(9)  # as SIGKILL: nothing is cleaned up
            replace(*paths)

        os.replace = replace_or_end
        save_run(tmp_path / "run", *runs[1])

    code, _, err = Forked(killed_at_a_renaming).end()
    assert code == 9, err
    assert settings(tmp_path / "run") == (0.3 if at == 3 else 0.03)  # the record's renaming decides
    save_run(tmp_path / "run", *runs[1])
    left = {file.name for file in (tmp_path / "run").iterdir()}
    assert not [name for name in left if name.startswith(".new-")]


# -------------------------------------------------------------------------------------------------------------- resume


@pytest.fixture(scope="module")
def arguments(shapes_dir, clip_dir) -> list:
    return ["--data", shapes_dir, "--shots", 1, "--epochs", 2, "--model", f"local-dir:{clip_dir}"]


@pytest.fixture(scope="module")
def finished(arguments, tmp_path_factory) -> Path:
    """The folder of a run of these arguments; tests only read it."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert cli.run([str(word) for word in ("train", *arguments, "--out", out)]) == 0
    return out


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        (["--shots", 2], "its shots is 1, this one's 2"),
        (["--seed", 1], "its seed is 0, this one's 1"),
        (["--epochs", 3], "its settings.epochs is 2, this one's 3"),
        (["--method", "coop"], "its method is 'prograd', this one's 'coop'"),
        (["--partition", 0], "its class_names is"),
        (["--precision", "bf16"], "its regime.precision is 'fp32', this one's 'bf16'"),
        (["--data", "clipart"], "its data is"),
        (["--model", "emoji-lite"], "its model is"),
    ],
)
def test_another_run_is_not_finished(arguments, finished, capfd, monkeypatch, changed, what):
    before = (finished / RECORD).read_bytes()
    line = fail(capfd, monkeypatch, "train", *arguments, *changed, "--out", finished, "--resume")
    assert what in line
    assert "--force to replace it" in line
    assert (finished / RECORD).read_bytes() == before


def test_the_same_run_is_finished(arguments, finished, capfd, monkeypatch):
    assert run_here(monkeypatch, "train", *arguments, "--out", finished, "--resume") == 0
    assert "nothing is left to do" in capfd.readouterr().out


@pytest.mark.parametrize("content", ["{}", "[]", "", "null", '{"method": "prograd"}', "[" * 100_000])
def test_what_is_no_record_is_not_finished(arguments, tmp_path, capfd, monkeypatch, content):
    (tmp_path / RECORD).write_text(content)
    line = fail(capfd, monkeypatch, "train", *arguments, "--out", tmp_path, "--resume")
    assert "holds no run to resume" in line
    assert (tmp_path / RECORD).read_text() == content


def test_what_is_no_record_is_replaced_by_force(arguments, tmp_path, monkeypatch):
    (tmp_path / RECORD).write_text("[]")
    assert run_here(monkeypatch, "train", *arguments, "--out", tmp_path, "--force") == 0
    load_run(tmp_path)


def test_a_mixed_run_is_not_finished(arguments, finished, tmp_path, runs, capfd, monkeypatch):
    shutil.copytree(finished, tmp_path / "run")
    save_run(tmp_path / "other", *runs[0])
    shutil.copy(tmp_path / "other" / PROMPT, tmp_path / "run" / PROMPT)
    line = fail(capfd, monkeypatch, "train", *arguments, "--out", tmp_path / "run", "--resume")
    assert "are of two runs" in line


def test_other_pictures_are_another_run(arguments, tmp_path, capfd, monkeypatch):
    data = draw_shapes(tmp_path / "shapes", per_class=4)
    arguments = [*arguments, "--data", data, "--shots", 2]
    assert run_here(monkeypatch, "train", *arguments, "--out", tmp_path / "run") == 0
    for i, file in enumerate(data.glob("red_circle/*")):
        draw("black_dot", 50 + i).save(file)
    assert "it learned from other pictures" in fail(
        capfd, monkeypatch, "train", *arguments, "--out", tmp_path / "run", "--resume"
    )


def test_a_forced_run_that_was_stopped_goes_on(arguments, finished, tmp_path, capfd, monkeypatch):
    out, longer = tmp_path / "run", [*arguments, "--epochs", 6]
    shutil.copytree(finished, out)
    earlier = load_run(out)[0]
    stopped_run(monkeypatch, tmp_path / "stopped", longer)
    shutil.copy(tmp_path / "stopped" / "checkpoint.safetensors", out)
    assert load_run(out)[0] == earlier
    assert run_here(monkeypatch, "train", *longer, "--out", out, "--resume") == 0
    assert load_run(out)[0]["settings"]["epochs"] == 6
    assert sorted(file.name for file in out.iterdir()) == sorted([RECORD, PROMPT, "curves.png"])


# ---------------------------------------------------------------------------------------------------------------- grid


@pytest.mark.parametrize("seed", range(3))
def test_damaged_runs_of_a_grid_are_run_again(clip, shapes, tmp_path, caplog, seed):
    grid = Grid([CoOp(epochs=2), LinearProbe()], [1], seeds=1)
    expected = accuracies(run_grid(grid, clip, shapes, tmp_path, no_bars))
    for file in (tmp_path / "runs").iterdir():
        content = file.read_bytes()
        for case in range(30):
            file.write_bytes(damaged(content, Random(100 * seed + case)))
            facts = json.loads(content)["facts"]
            found = grids._finished(file, facts)
            assert found is None or found["accuracy"] == json.loads(content)["accuracy"]
    assert accuracies(run_grid(grid, clip, shapes, tmp_path, no_bars)) == expected


@pytest.fixture(scope="module")
def finished_grid(clip, shapes, tmp_path_factory) -> tuple:
    """A grid of one run, its folder, and its accuracies."""
    grid, folder = Grid([CoOp(epochs=2)], [1], seeds=1), tmp_path_factory.mktemp("grid")
    return grid, folder, accuracies(run_grid(grid, clip, shapes, folder, no_bars))


@pytest.mark.parametrize(
    "change",
    [
        lambda run: run.update(accuracy={"all": "much"}),
        lambda run: run.update(accuracy=None),
        lambda run: run.pop("seconds"),
        lambda run: run.update(memory="much"),
        lambda run: run.update(method="lora"),
        lambda run: run.update(shots=3),
        lambda run: run["steps"].update(cosine=["a"]),
        lambda run: run.update(steps=7),
    ],
)
def test_crafted_runs_of_a_grid_are_run_again(clip, shapes, finished_grid, tmp_path, change, caplog):
    grid, folder, expected = finished_grid
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (file,) = (tmp_path / "runs").iterdir()
    run = unseal(json.loads(file.read_text()))
    change(run)
    file.write_text(json.dumps(seal(run)))
    assert accuracies(run_grid(grid, clip, shapes, tmp_path, no_bars)) == expected
    assert f"{file} is damaged" in caplog.text
