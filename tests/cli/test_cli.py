"""The commands do what they say, write what they say, and end in one line where something is wrong."""

import json
import os
import re
from pathlib import Path

import pytest

from prograd_fast.terminal import output
from prograd_fast.training.checkpoint import Checkpoints
from tests.cli.support import fail, run, run_here, stopped_run
from tests.conftest import SHAPES, draw, draw_shapes


@pytest.fixture(scope="module")
def options(shapes_dir) -> list:
    """The options of `train` with emoji-lite."""
    return ["--data", shapes_dir, "--method", "prograd", "--shots", 4, "--epochs", 30]


@pytest.fixture(scope="module")
def trained(options, tmp_path_factory) -> tuple[Path, str]:
    """A run folder made by the command on generated pictures, in a process of its own, and what was printed."""
    out = tmp_path_factory.mktemp("cli") / "runs" / "mine"  # neither folder exists
    done = run("train", *options, "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_train_writes_record_and_prompt(trained, shapes):
    out, printed = trained
    assert sorted(file.name for file in out.iterdir()) == ["curves.png", "prompt.safetensors", "record.json"]
    record = json.loads((out / "record.json").read_text())
    assert record["method"] == "prograd"
    assert record["settings"]["epochs"] == 30
    assert record["data"]["class_names"] == sorted(name.replace("_", " ") for name in SHAPES)
    validation, test = (int((shapes.split == part).sum()) for part in ("validation", "test"))
    assert record["pictures"] == {"train": 16, "validation": validation, "all": test}
    assert {"python", "torch", "open_clip_torch", "prograd-fast"} <= record["versions"].keys()
    assert {name: len(values) for name, values in record["steps"].items()} == dict.fromkeys(
        ("task_loss", "general_loss", "cosine", "conflict", "accuracy"), 30
    )
    assert record["conflict_rate"] == sum(record["steps"]["conflict"][1:]) / 29
    assert record["steps"]["task_loss"][-1] < record["steps"]["task_loss"][0]
    assert record["seconds"].keys() == {"encode", "train", "evaluate"}
    assert record["accuracy"]["all"] > 0.5  # colours and shapes are easy; guessing gives 0.25
    row = next(line for line in printed.splitlines() if "│ all" in line)
    accuracies = (record["zero_shot_accuracy"]["all"], record["accuracy"]["all"])
    assert re.findall(r"\d+\.\d", row) == [f"{100 * accuracy:.1f}" for accuracy in accuracies]
    assert f"prograd-fast predict {out}" in " ".join(printed.split())


def test_predict_and_evaluate_a_run(trained, tmp_path, capfd, monkeypatch):
    out, _ = trained
    monkeypatch.chdir(tmp_path)
    files = [tmp_path / f"{folder}.png" for folder in SHAPES]
    for file in files:
        draw(file.stem, 7).save(file)
    assert run_here(monkeypatch, "predict", out, *[file.name for file in files], "--top", 2) == 0
    printed = capfd.readouterr().out
    for file in files:
        row = next(line for line in printed.splitlines() if file.name in line)
        chances = [float(number) for number in re.findall(r" (\d+\.\d) ", row)]
        assert len(chances) == 2
        assert chances[0] >= chances[1]
    assert run_here(monkeypatch, "evaluate", out, "--data", draw_shapes(tmp_path / "more", per_class=3)) == 0
    printed = capfd.readouterr().out
    assert "ProGrad" in printed
    assert "25.0 by guessing" in printed


def test_same_seed_same_record_in_any_process(trained, options, tmp_path, monkeypatch):
    assert run_here(monkeypatch, "train", *options, "--out", tmp_path) == 0
    there, here = (json.loads((folder / "record.json").read_text()) for folder in (trained[0], tmp_path))
    for record in (there, here):
        del record["created"], record["seconds"]
    assert there == here


def test_corrupt_pictures_end_training_before_anything_is_written(tmp_path, clip_dir, capfd, monkeypatch):
    data = draw_shapes(tmp_path / "shapes", per_class=4)
    for name in ("red_circle/00.png", "green_bar/03.png"):
        (data / name).write_bytes(b"\x89PNG no picture" + name.encode())  # equal ones would be one picture
    out = tmp_path / "run"
    line = fail(capfd, monkeypatch, "train", "--data", data, "--out", out, "--model", f"local-dir:{clip_dir}")
    assert "2 of 16 pictures cannot be read" in line
    assert "red_circle/00.png" in line
    assert "green_bar/03.png" in line
    assert not out.exists()


def test_an_earlier_run_is_replaced_only_by_force(shapes_dir, clip_dir, tmp_path, capfd, monkeypatch):
    (tmp_path / "record.json").write_text("{}")
    arguments = ["--data", shapes_dir, "--out", tmp_path, "--shots", 1, "--epochs", 1]
    arguments += ["--model", f"local-dir:{clip_dir}"]
    assert "holds an earlier run" in fail(capfd, monkeypatch, "train", *arguments)
    assert (tmp_path / "record.json").read_text() == "{}"
    assert run_here(monkeypatch, "train", *arguments, "--force") == 0
    assert json.loads((tmp_path / "record.json").read_text())["method"] == "prograd"


def test_a_memory_limit_is_kept_to(tmp_path, shapes_dir, clip_dir, monkeypatch, capfd):
    arguments = ["--data", shapes_dir, "--out", tmp_path / "run", "--shots", 1, "--epochs", 1]
    arguments += ["--model", f"local-dir:{clip_dir}", "--max-memory"]
    assert "max_memory: expected at least" in fail(capfd, monkeypatch, "train", *arguments, 1e-6)
    assert "--max-memory: expected gigabytes" in fail(capfd, monkeypatch, "train", *arguments, 0)
    assert run_here(monkeypatch, "train", *arguments, 0.01) == 0


def test_a_stopped_run_goes_on(shapes_dir, clip_dir, tmp_path, capfd, monkeypatch):
    arguments = ["--data", shapes_dir, "--shots", 2, "--epochs", 3, "--set", "batch_size=3", "--views", 2]
    arguments += ["--model", f"local-dir:{clip_dir}"]
    assert run_here(monkeypatch, "train", *arguments, "--out", tmp_path / "whole") == 0
    out = tmp_path / "run"
    stopped_run(monkeypatch, out, arguments)
    line = fail(capfd, monkeypatch, "train", *arguments, "--out", out)
    assert "holds an unfinished run; --resume to go on with it, --force to begin anew" in line
    for changed, name in (
        (["--lr", 0.2], "settings.lr"),
        (["--seed", 1], "seed"),
        (["--precision", "bf16"], "regime.precision"),
    ):
        line = fail(capfd, monkeypatch, "train", *arguments, *changed, "--out", out, "--resume")
        assert f"belongs to another run: its {name} is" in line
    assert run_here(monkeypatch, "train", *arguments, "--out", out, "--resume") == 0
    assert sorted(file.name for file in out.iterdir()) == ["curves.png", "prompt.safetensors", "record.json"]
    whole, resumed = (json.loads((tmp_path / name / "record.json").read_text()) for name in ("whole", "run"))
    for record in (whole, resumed):
        del record["created"], record["seconds"]
    assert whole == resumed
    assert whole["regime"] == {"precision": "fp32", "accumulate": 1, "patience": None, "views": 2}
    assert run_here(monkeypatch, "train", *arguments, "--out", out, "--resume") == 0
    assert "nothing is left to do" in capfd.readouterr().out


def test_a_stopped_run_can_be_begun_anew(shapes_dir, clip_dir, tmp_path, monkeypatch):
    arguments = ["--data", shapes_dir, "--shots", 2, "--epochs", 6, "--model", f"local-dir:{clip_dir}"]
    stopped_run(monkeypatch, tmp_path, arguments)
    assert run_here(monkeypatch, "train", *arguments, "--lr", 0.2, "--out", tmp_path, "--force") == 0
    assert json.loads((tmp_path / "record.json").read_text())["settings"]["lr"] == 0.2


def test_a_damaged_checkpoint_gets_one_line(shapes_dir, clip_dir, tmp_path, capfd, monkeypatch):
    arguments = ["--data", shapes_dir, "--shots", 2, "--epochs", 6, "--model", f"local-dir:{clip_dir}"]
    stopped_run(monkeypatch, tmp_path, arguments)
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    line = fail(capfd, monkeypatch, "train", *arguments, "--out", tmp_path, "--resume")
    assert "checkpoint.safetensors is not a whole checkpoint" in line
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("when", ["checkpoint.safetensors", "prompt.safetensors", "record.json"])
def test_full_disk_gets_one_line_and_leaves_no_half_files(shapes_dir, clip_dir, tmp_path, capfd, monkeypatch, when):
    monkeypatch.setattr(Checkpoints, "due", True)
    real = os.fsync

    def full(descriptor: int) -> None:  # where a full disk shows at the latest
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(when):
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    out = tmp_path / "run"
    arguments = ["--data", shapes_dir, "--shots", 1, "--epochs", 3, "--model", f"local-dir:{clip_dir}", "--no-cache"]
    assert "No space left on device" in fail(capfd, monkeypatch, "train", *arguments, "--out", out)
    left = {file.name for file in out.iterdir()}
    assert when not in left
    assert "record.json" not in left  # it would say that the run is whole
    assert not [name for name in left if name.startswith(".")]


def test_tensorboard_log_of_the_command(shapes_dir, clip_dir, tmp_path, monkeypatch):
    arguments = ["--data", shapes_dir, "--shots", 1, "--epochs", 2, "--model", f"local-dir:{clip_dir}"]
    assert run_here(monkeypatch, "train", *arguments, "--out", tmp_path / "run", "--log", tmp_path / "log") == 0
    assert [file.name.startswith("events.out") for file in (tmp_path / "log").iterdir()] == [True]


def test_a_run_that_breaks_says_so_and_keeps_the_last_good_prompt(shapes_dir, clip_dir, tmp_path, capfd, monkeypatch):
    arguments = ["--data", shapes_dir, "--shots", 1, "--epochs", 5, "--lr", 3e38, "--model", f"local-dir:{clip_dir}"]
    assert run_here(monkeypatch, "train", *arguments, "--out", tmp_path / "run") == 1
    assert "Training stopped after 1 steps" in capfd.readouterr().out
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["completed"] is False
    assert record["accuracy"] == record["zero_shot_accuracy"]  # the start is the teacher's prompt


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("trane", "No such command 'trane'"),
        ("train --data SHAPES", "Missing option '--out'"),
        ("train --data nowhere --out OUT", "no picture set or folder 'nowhere'"),
        ("train --data SHAPES --out OUT --method lora", "unknown method 'lora'; expected one of zero-shot, .*prograd"),
        ("train --data SHAPES --out OUT --preset mine", "prograd has no preset 'mine'"),
        ("train --data SHAPES --out OUT --method linear-probe --lr 1", "linear-probe has no setting lr; it has C,"),
        ("train --data SHAPES --out OUT --set lambda_", "--set: expected NAME=VALUE, got 'lambda_'"),
        ("train --data SHAPES --out OUT --set lambda_=much", "settings.lambda_: expected float | None, got 'much'"),
        ("train --data SHAPES --out OUT --set batch_size=0", "batch_size must be 1 or more, got 0"),
        ("train --data SHAPES --out OUT --shots 0", "--shots: expected a number of 1 or more, or all, got '0'"),
        ("train --data SHAPES --out OUT --seed -1", "'--seed'"),
        ("train --data SHAPES --out OUT --seed 4294967296", "seed must be between 0 and 4294967295, got 4294967296"),
        ("train --data SHAPES --out OUT --partition 4294967196", "partition must be between 0 and 4294967195, got"),
        ("train --data SHAPES --out OUT --lr -0.1", "lr must be above 0 and finite, got -0.1"),
        ("train --data SHAPES --out OUT --lr much", "'--lr'"),
        ("train --data SHAPES --out OUT --model ViT-B-23", "unknown model 'ViT-B-23'"),
        ("train --data SHAPES --out OUT --partition 0 --all-classes", "exclude each other"),
        ("train --data SHAPES --out OUT --cache FILE", "cannot write to .*file is not a folder.*another --cache"),
        ("train --data SHAPES --out OUT --cache FILE --no-cache", "exclude each other"),
        ("train --data SHAPES --out OUT --precision fp8", "precision: expected one of fp32, bf16, fp16, got 'fp8'"),
        ("train --data SHAPES --out OUT --patience 0", "'--patience'"),
        ("train --data SHAPES --out OUT --views -1", "'--views'"),
        ("train --data SHAPES --out OUT --resume --force", "--resume and --force exclude each other"),
        ("train --data SHAPES --out OUT --log FILE/run", "cannot write to .*; choose another --log"),
        ("train --data SHAPES --out FILE/run", "cannot write to .*file/run: .*file is not a folder"),
        ("demo --out FILE", "cannot write to"),
        ("evaluate nowhere --data SHAPES", "nowhere is not a run"),
        ("predict nowhere x.png", "nowhere is not a run"),
        ("predict nowhere", "Missing argument 'PICTURE...'"),
    ],
)
def test_mistakes_get_one_line(arguments, message, shapes_dir, tmp_path, capfd, monkeypatch):
    (tmp_path / "file").touch()
    places = {
        "SHAPES": shapes_dir,
        "OUT": tmp_path / "out",
        "FILE": tmp_path / "file",
        "FILE/run": tmp_path / "file/run",
    }
    line = fail(capfd, monkeypatch, *[places.get(word, word) for word in arguments.split()])
    assert re.search(message, line), line
    assert not (tmp_path / "out").exists()


def test_a_preset_and_settings_beside_it(shapes_dir, clip_dir, tmp_path, capfd, monkeypatch):
    arguments = ["--data", shapes_dir, "--shots", 1, "--model", f"local-dir:{clip_dir}", "--out", tmp_path / "run"]
    arguments += ["--method", "lasp", "--preset", "vit-b16-base-to-new", "--epochs", 3, "--set", "lambda_=0.5"]
    arguments += ["--set", 'virtual_classes=["kite"]', "--set", "batch_size=null", "--partition", 1]
    assert run_here(monkeypatch, "train", *arguments) == 0
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["accuracy"].keys() == {"validation", "base", "new", "harmonic mean"}
    settings = record["settings"]
    assert (settings["lr"], settings["warmup_epochs"], settings["clip_grad_norm"]) == (0.032, 3, 1.0)  # the preset's
    assert (settings["epochs"], settings["lambda_"], settings["virtual_classes"]) == (3, 0.5, ["kite"])
    assert settings["batch_size"] is None
    assert run_here(monkeypatch, "evaluate", tmp_path / "run", "--data", shapes_dir, "--trust") == 0
    assert "LASP" in capfd.readouterr().out


def test_methods_and_their_presets_are_listed(capfd, monkeypatch):
    monkeypatch.setattr(output.console, "_width", None)  # COLUMNS of when it was made, which pytest-xdist sets
    monkeypatch.setenv("COLUMNS", "200")
    assert run_here(monkeypatch, "methods") == 0
    text = "".join(capfd.readouterr().out.split())
    assert all(word in text for word in ("zero-shot", "subpt-nfl", "alpha=5.0", "vit-b16-base-to-new-eurosat"))
    assert all(word in text for word in ("2023", "contexttokens", "closedform", "aresidualofeach"))


def test_doctor_and_help(capfd, monkeypatch):
    assert run_here(monkeypatch, "doctor") == 0
    assert "PyTorch" in capfd.readouterr().out
    assert run_here(monkeypatch) == 0  # no command: help
    text = capfd.readouterr().out
    assert all(command in text for command in ("train", "compare", "evaluate", "predict", "demo", "doctor"))
    assert run_here(monkeypatch, "train", "--help") == 0
    assert "prograd-fast train --data my_pictures" in capfd.readouterr().out
