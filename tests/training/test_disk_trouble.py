"""Full disks and folders that cannot be written are told in time, and nothing is lost."""

import ctypes
import io
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console

from prograd_fast import cli, training
from prograd_fast.cli import folders
from prograd_fast.cli.folders import check_writable
from prograd_fast.methods import CoOp, ZeroShot
from prograd_fast.report import report_comparison
from prograd_fast.training import Grid, load_run, run_grid, tensorboard, train, tune
from prograd_fast.training.checkpoint import Checkpoints
from tests.cli.support import fail, run_here
from tests.processes import Forked
from tests.training.support import accuracies, disk_full, fill, make_learner, no_bars


@pytest.fixture(scope="module")
def small_disk() -> Iterator[Path]:
    """An empty file system of its own of 4 MiB. Without the right to mount one, tests with patched writers remain."""
    folder = Path("/tmp") / f"prograd-fast-disk-{os.getpid()}"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", os.fsencode(folder), b"tmpfs", 0, b"size=4m"):
        folder.rmdir()
        pytest.skip("no right to mount a disk of its own")
    yield folder
    libc.umount2(os.fsencode(folder), 2)
    folder.rmdir()


@pytest.mark.parametrize(
    "kind", ["dangling", "loop", "dangling parent", "file", "file as parent", "/proc", "/dev/null"]
)
@pytest.mark.parametrize("option", ["--out", "--log", "--cache"])
def test_folders_that_cannot_be_are_told_before_the_work(tmp_path, shapes_dir, capfd, monkeypatch, kind, option):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    folder = {
        "dangling parent": tmp_path / "dangling" / "run",
        "file as parent": tmp_path / "file" / "run",
        "/proc": Path("/proc/run"),
        "/dev/null": Path("/dev/null"),
    }.get(kind, tmp_path / kind)
    monkeypatch.setattr("prograd_fast.data.load", disk_full)  # the first piece of work
    arguments = ["--data", shapes_dir, *([] if option == "--out" else ["--out", tmp_path / "run"]), option, folder]
    line = fail(capfd, monkeypatch, "train", *arguments)
    assert re.search(f"cannot write to {folder}: .*; .*choose another {option}", line), line


@pytest.mark.parametrize("name", ["record.json", "prompt.safetensors", "checkpoint.safetensors"])
def test_a_folder_in_place_of_a_file_is_told_before_the_work(tmp_path, shapes_dir, capfd, monkeypatch, name):
    (tmp_path / name).mkdir()
    monkeypatch.setattr("prograd_fast.data.load", disk_full)
    line = fail(capfd, monkeypatch, "train", "--data", shapes_dir, "--out", tmp_path, "--force")
    assert f"cannot write {tmp_path / name}: a folder of this name is there" in line


def test_a_folder_without_room_is_told_before_the_work(tmp_path, monkeypatch):
    check_writable(tmp_path / "a" / "b")
    assert not os.listdir(tmp_path)
    monkeypatch.setattr(folders.tempfile, "TemporaryFile", disk_full)
    with pytest.raises(ValueError, match=r"has no room .*No space left on device.*free 1 MiB there"):
        check_writable(tmp_path)


def test_a_full_disk_is_told_before_the_work(small_disk, shapes_dir, capfd, monkeypatch):
    fill(small_disk)
    monkeypatch.setattr("prograd_fast.data.load", disk_full)
    line = fail(capfd, monkeypatch, "train", "--data", shapes_dir, "--out", small_disk / "run")
    (small_disk / "filler").unlink()
    assert f"cannot write to {small_disk}/run: {small_disk} has no room" in line
    assert not os.listdir(small_disk)


@pytest.fixture
def arguments(shapes_dir, clip_dir) -> list:
    return ["--data", shapes_dir, "--shots", 1, "--epochs", 3, "--model", f"local-dir:{clip_dir}", "--no-cache"]


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("name", ["record.json", "prompt.safetensors"])
def test_a_run_that_cannot_be_saved_is_finished_by_resume(arguments, tmp_path, capfd, monkeypatch, name, earlier):
    out = tmp_path / "run"
    if earlier:
        assert run_here(monkeypatch, "train", *arguments, "--lr", 0.2, "--out", out) == 0
    before = load_run(out)[0] if earlier else None
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(name):
            disk_full()
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        line = fail(capfd, patch, "train", *arguments, "--out", out, *(["--force"] if earlier else []))
    assert re.search(rf"cannot write {out}/\S*{re.escape(name)}: No space left on device; free some space", line), line
    assert f"go on from {out}/checkpoint.safetensors with --resume" in line
    if earlier:
        assert load_run(out)[0] == before
    assert run_here(monkeypatch, "train", *arguments, "--out", tmp_path / "whole") == 0
    monkeypatch.setattr("prograd_fast.training.loop.update", disk_full)  # nothing is trained again
    assert run_here(monkeypatch, "train", *arguments, "--out", out, "--resume") == 0
    whole, resumed = (load_run(folder) for folder in (tmp_path / "whole", out))
    for record, _ in (whole, resumed):
        del record["created"], record["seconds"]
    assert resumed[0] == whole[0]
    assert torch.equal(resumed[1]["ctx"], whole[1]["ctx"])
    assert sorted(os.listdir(out)) == ["curves.png", "prompt.safetensors", "record.json"]


def test_a_disk_that_fills_up_while_a_run_goes_on(small_disk, arguments, capfd, monkeypatch):
    out = small_disk / "run"
    assert run_here(monkeypatch, "train", *arguments, "--lr", 0.2, "--out", out) == 0
    before = load_run(out)[0]
    real = train.run_facts

    def facts(*args):  # what is asked just before training
        fill(small_disk)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(train, "run_facts", facts)
        line = fail(capfd, patch, "train", *arguments, "--out", out, "--force")
    assert f"cannot write {out}" in line
    assert "No space left on device; free some space there" in line
    assert load_run(out)[0] == before
    (small_disk / "filler").unlink()
    assert run_here(monkeypatch, "train", *arguments, "--out", out, "--force") == 0
    shutil.rmtree(out)


def test_a_limit_of_file_sizes(arguments, tmp_path):
    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        save = training.save_run

        def save_run(*args) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, 1 << 20))
            try:
                save(*args)
            finally:  # what is printed goes to a file too
                resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

        training.save_run = save_run
        sys.exit(cli.run(["train", *map(str, arguments), "--out", str(tmp_path / "run")]))

    code, _, err = Forked(limited).end()
    assert code == 2
    lines = [line for line in err.splitlines() if line.startswith("prograd-fast: ")]
    assert len(lines) == 1, err
    assert "prompt.safetensors: File too large; raise the limit of file sizes" in lines[0]
    assert os.listdir(tmp_path / "run") == ["checkpoint.safetensors"]


def logged_training(folder: Path, break_it: Callable[[], object]) -> list[float]:
    """The losses of a training whose log breaks after ten steps."""
    with tensorboard(folder) as log:

        def watched(step: int, values: dict) -> None:
            log(step, values)
            if step == 10:
                break_it()

        return tune(make_learner(), log=watched).task_loss


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # tensorboard's own thread
def test_a_full_log_does_not_end_the_training(small_disk, caplog):
    assert logged_training(small_disk / "log", lambda: fill(small_disk)) == tune(make_learner()).task_loss
    shutil.rmtree(small_disk / "log")
    (small_disk / "filler").unlink()
    assert caplog.text.count("training goes on without the log") == 1


def test_a_log_that_cannot_be_begun_does_not_end_the_training(tmp_path, caplog):
    (tmp_path / "log").write_text("in the way")
    assert logged_training(tmp_path / "log", lambda: None) == tune(make_learner()).task_loss
    assert caplog.text.count("training goes on without the log") == 1


def test_a_log_that_breaks_does_not_end_the_training(tmp_path, caplog, monkeypatch):
    from torch.utils.tensorboard import SummaryWriter

    def break_it() -> None:
        monkeypatch.setattr(SummaryWriter, "add_scalar", disk_full)

    assert logged_training(tmp_path / "log", break_it) == tune(make_learner()).task_loss
    assert caplog.text.count("training goes on without the log") == 1


def test_a_comparison_on_a_full_disk_prints_its_table(clip, shapes, tmp_path, monkeypatch, caplog):
    grid = Grid([ZeroShot(), CoOp(epochs=3)], [1], seeds=2)
    expected = accuracies(run_grid(grid, clip, shapes, tmp_path / "whole", no_bars))
    stream = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", disk_full)
        patch.setattr(Checkpoints.__init__, "__defaults__", (0.0, False))  # seconds between two
        results = run_grid(grid, clip, shapes, tmp_path / "out", no_bars)
        assert accuracies(results) == expected
        with pytest.raises(OSError, match=f"cannot write {tmp_path}/out/results.json: No space left"):
            report_comparison(results, tmp_path / "out", Console(file=stream, width=200))
    assert "CoOp" in stream.getvalue()
    assert "zero-shot-1shots-seed0 is not kept" in caplog.text
    assert caplog.text.count("training goes on without checkpoints") == 2  # one for each run of CoOp
    assert not [file for file in (tmp_path / "out").rglob("*") if file.is_file()]


def test_compare_on_a_full_disk(small_disk, shapes_dir, clip_dir, capfd, monkeypatch):
    from prograd_fast.training import grid as grids

    real = grids.run_method

    def run(*args, **options):
        fill(small_disk)
        return real(*args, **options)

    monkeypatch.setattr(grids, "run_method", run)
    arguments = ["--data", shapes_dir, "--methods", "zero-shot", "--shots", 1, "--seeds", 1, "--no-cache"]
    arguments += ["--model", f"local-dir:{clip_dir}", "--out", small_disk / "grid"]
    assert run_here(monkeypatch, "compare", *arguments) == 2
    said = capfd.readouterr()
    (small_disk / "filler").unlink()
    assert "zero-shot │ 1" in said.out
    assert f"cannot write {small_disk}/grid/results.json: No space left on device; free some space" in said.err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has this device")
@pytest.mark.slow
def test_a_full_stdout_is_named():
    """What was to be printed is lost, which no file can show."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "prograd_fast", "methods"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )
    assert done.returncode == 2
    assert done.stderr == "prograd-fast: cannot write to stdout: No space left on device\n"
