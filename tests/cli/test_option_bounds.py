"""Options and settings beyond all reason: one line at once, in the API a ValueError; and a last resort."""

import re
import time

import pytest
import torch

from prograd_fast.cli import models
from prograd_fast.clip import PromptedCLIP
from prograd_fast.methods import (
    AnchorOPT,
    ATPrompt,
    LinearProbe,
    ProDA,
    ProGradCoOp,
    PromptSRC,
    SubPT,
    Variational,
    method_named,
)
from prograd_fast.training import Grid, TrainOptions, make_plan
from tests.cli.support import fail, run_here
from tests.tiny_clip import CLASS_NAMES, TOKENIZER, tiny_clip

TRAIN = [
    ("--max-memory inf", "--max-memory: expected gigabytes, .* got inf"),
    ("--max-memory nan", "--max-memory: expected gigabytes, .* got nan"),
    ("--max-memory 1e300", "--max-memory: expected gigabytes, .* got 1e\\+300"),
    ("--n-ctx 1000000000", "n_ctx must be at most 1000000, got 1000000000"),
    ("--n-ctx 1000000", "n_ctx: 1000000 context tokens and a class name do not fit in the text tower's 77 positions"),
    ("--shots 100000000000", "shots must be at most 1000000000"),
    ("--epochs 1000000000", "epochs must be at most 1000000"),
    ("--accumulate 1000000000000", "accumulate: expected 1000000 at most"),
    ("--patience 1000000000000", "patience: expected"),
    ("--views 1000000000000", "views: expected"),
    ("--lr inf", "lr must be finite"),
    ("--lr nan", "lr must be finite"),
    ("--device nonsense", "cannot use device 'nonsense'"),
    ("--device meta", "cannot use device 'meta'"),
    ("--device cuda:99999999999999999999", "cannot use device"),
    (f"--ctx-init {'a' * 100_000}", "ctx_init must have at most 10000 characters, got 100000: 'aaa"),
    (f"--ctx-init {'a' * 9000}", "is too long: 9000 characters"),
    (f"--set batch_size={'9' * 400}", "batch_size must be at most 1000000, got 999"),
    (f"--set batch_size={'9' * 5000}", "batch_size: expected .* got '999"),
    ("--set momentum=1e999", "momentum must be finite"),
    ("--set momentum=NaN", "momentum must be finite"),
    ("--set temperature=1e300", "temperature must be at most 1e\\+30"),
    (f"--set lr={'[' * 100_000}", "--set lr: the JSON is nested too deeply, got '\\[\\[\\["),
    (f"--set lr={'[' * 900}{']' * 900}", "settings.lr: expected float, got \\(\\[\\["),
    ('--set templates=[{"a":1}]', "settings.templates: expected tuple"),
    ("--set \x1b[2J=1", r"prograd has no setting \\x1b\[2J; it has"),
    ("--preset \x1b[2J", r"prograd has no preset '\\x1b\[2J'"),
    ("--out a\0b", "(cannot write to a.x00b: no name on a disk holds a NUL|embedded null byte)"),
]
COMPARE = [
    ("--seeds 1000000000", "a grid of 1000000000 runs: expected 100000 at most"),
    ("--partitions 1000000000", "a grid of 1000000000 runs"),
    ("--shots 1,1e9", "--shots: expected numbers"),
    ("--imbalance inf", "imbalance: expected 1 or more and finite, got inf"),
    ("--imbalance nan", "imbalance.*(1 or more|equal to 1)"),
]


@pytest.mark.parametrize(("given", "message"), TRAIN, ids=[given[:30] for given, _ in TRAIN])
def test_options_of_train(shapes_dir, clip_dir, tmp_path, capfd, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    good = ["--data", shapes_dir, "--out", tmp_path / "run", "--shots", 1, "--epochs", 1]
    started = time.monotonic()
    line = fail(capfd, monkeypatch, "train", *good, "--model", f"local-dir:{clip_dir}", *given.split(" ", 1))
    assert time.monotonic() - started < 20
    assert re.search(message, line), line
    assert len(line) < 3000
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("given", "message"), COMPARE)
def test_options_of_compare(shapes_dir, clip_dir, tmp_path, capfd, monkeypatch, given, message):
    good = ["--data", shapes_dir, "--out", tmp_path / "grid", "--methods", "zero-shot", "--shots", 1, "--seeds", 1]
    line = fail(capfd, monkeypatch, "compare", *good, "--model", f"local-dir:{clip_dir}", *given.split(" ", 1))
    assert re.search(message, line), line
    assert not (tmp_path / "grid").exists()


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"coop": {"preset": ["x"]}}', '{"coop": {"lr": {"a": 1}}}', "\x1b"]
)
def test_settings_of_compare(shapes_dir, tmp_path, capfd, monkeypatch, content):
    (tmp_path / "settings.json").write_text(content)
    arguments = ["--data", shapes_dir, "--out", tmp_path / "grid", "--methods", "coop"]
    fail(capfd, monkeypatch, "compare", *arguments, "--settings", tmp_path / "settings.json")


@pytest.mark.parametrize(
    "make",
    [
        lambda: ProGradCoOp(epochs=10**9),
        lambda: ProGradCoOp(epochs="many"),
        lambda: ProGradCoOp(epochs=True),
        lambda: ProGradCoOp(lr=float("nan")),
        lambda: ProGradCoOp(temperature=float("inf")),
        lambda: ProGradCoOp(ctx_init="a" * 10**6),
        lambda: ProGradCoOp(templates=("{}", 3)),
        lambda: SubPT(early_epochs=10**9),
        lambda: PromptSRC(depth=10**6),
        lambda: Variational(samples=10**6),
        lambda: ATPrompt(n_attribute=10**6),
        lambda: ProDA(n_contexts=10**6),
        lambda: AnchorOPT(n_anchor=10**6),
        lambda: LinearProbe(C=0.0),
        lambda: LinearProbe(C=float("nan")),
        lambda: LinearProbe(max_iter=0),
        lambda: method_named("prograd", {}, ["preset"]),
        lambda: TrainOptions(accumulate=10**30),
        lambda: Grid([ProGradCoOp()], [1], 1, imbalance=float("nan")),
        lambda: Grid([ProGradCoOp()], [1], 10**6),
        lambda: PromptedCLIP(tiny_clip(), TOKENIZER, CLASS_NAMES, n_ctx=10**12),
        lambda: PromptedCLIP(tiny_clip(), TOKENIZER, ["a" * 10**6]),
        lambda: PromptedCLIP(tiny_clip(), TOKENIZER, CLASS_NAMES, max_memory=float("inf")),
        lambda: PromptedCLIP(tiny_clip(), TOKENIZER, CLASS_NAMES, max_memory=float("nan")),
    ],
)
def test_the_api_refuses_as_well(make):
    with pytest.raises(ValueError):  # noqa: PT011  each has a message of its own; the command's are looked at above
        make()


@pytest.mark.parametrize("shots", [0, -1, 10**30])
def test_shots(shapes, shots):
    with pytest.raises(ValueError, match="shots must be"):
        make_plan(shapes, shots, 0, None)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (TypeError("odd\x1b[2J\ntower"), r"TypeError: odd\\x1b\[2J tower. This is a mistake .*; --debug shows where"),
        (RecursionError("deep"), "RecursionError: deep. This is a mistake"),
        (KeyError("x"), "KeyError: 'x'. This is a mistake"),
        (AssertionError(), "AssertionError. This is a mistake"),
        (MemoryError(), r"out of memory \(MemoryError\); train on fewer"),
        (RuntimeError("[enforce fail] can't allocate memory: you tried"), "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "out of memory"),
    ],
)
def test_the_last_resort(tmp_path, capfd, monkeypatch, error, message):
    assert run_here(monkeypatch, *failing_command(monkeypatch, tmp_path, error)) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert re.fullmatch(f"prograd-fast: {message}.*", line)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("101"), "ValueError: 101"),
        (OSError(), "OSError"),
        (ImportError("torchvision"), "ImportError: torchvision"),
        (ValueError("a word more"), "a word more"),
        (ValueError("name " * 10_000), r"(name )+ \.\.\. [name ]+"),
    ],
)
def test_a_line_says_something_and_is_short(tmp_path, capfd, monkeypatch, error, message):
    assert run_here(monkeypatch, *failing_command(monkeypatch, tmp_path, error)) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert re.fullmatch(f"prograd-fast: {message}", line)
    assert len(line) < 1100


@pytest.mark.parametrize("first", [True, False])
def test_debug_shows_the_traceback(tmp_path, capfd, monkeypatch, first):
    arguments = failing_command(monkeypatch, tmp_path, TypeError("odd\x1b[2J\ntower"))
    arguments = ["--debug", *arguments] if first else [*arguments, "--debug"]
    assert run_here(monkeypatch, *arguments) == 1
    said = capfd.readouterr().err
    assert "Traceback (most recent call last):" in said
    assert "\x1b" not in said
    assert said.splitlines()[-1].startswith(r"prograd-fast: TypeError: odd\x1b[2J tower. This is a mistake")
    assert "--debug shows where" not in said


def failing_command(monkeypatch, tmp_path, error: Exception) -> list:
    """A command that fails with this error at once."""

    def fails(*_):
        raise error

    monkeypatch.setattr("prograd_fast.training.load_run", fails)
    return ["predict", tmp_path, "x.png"]


def test_debug_shows_where_wrong_input_was_found(tmp_path, capfd, monkeypatch):
    assert run_here(monkeypatch, "--debug", "predict", tmp_path, "x.png") == 2
    assert "Traceback" in capfd.readouterr().err
    assert run_here(monkeypatch, "--debug", "trane") == 2  # click's errors are of a class without a public address
    assert "No such command 'trane'" in capfd.readouterr().err.splitlines()[-1]


def test_text_towers_out_of_reach_are_refused_before_pictures_are_looked_at(
    shapes_dir, clip_dir, tmp_path, capfd, monkeypatch
):
    """Hugging Face's towers, which need a package that is not installed here."""
    load = models.open_model

    def other(*arguments):
        clip = load(*arguments)
        del clip.model.token_embedding
        return clip

    monkeypatch.setattr("prograd_fast.cli.train.open_model", other)
    arguments = ["--data", shapes_dir, "--out", tmp_path / "run", "--model", f"local-dir:{clip_dir}"]
    assert "context tokens cannot be put" in fail(capfd, monkeypatch, "train", *arguments)


def test_a_rate_beyond_float32_is_told(shapes_dir, clip_dir, tmp_path, capfd, monkeypatch):
    """Without a general gradient torch.optim makes the step, which refuses such a factor."""
    arguments = ["train", "--data", shapes_dir, "--shots", 1, "--epochs", 1, "--method", "promptsrc", "--lr", 1e300]
    code = run_here(monkeypatch, *arguments, "--model", f"local-dir:{clip_dir}", "--out", tmp_path / "run")
    assert code == 2
    assert "prograd-fast: lr: expected a rate that float32 holds, got 1e+300; lower lr" in capfd.readouterr().err
