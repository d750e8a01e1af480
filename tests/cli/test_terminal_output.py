"""Names with control characters, markup or formulas in them: shown on terminals, in tables and figures, and no more."""

import io
import logging
import re
import sys
import unicodedata
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from prograd_fast.methods import ZeroShot
from prograd_fast.report import accuracy_table, report_comparison
from prograd_fast.terminal import output, streams
from prograd_fast.terminal.output import Table, progress
from prograd_fast.terminal.printable import message_line, printable
from prograd_fast.training import Grid, run_grid
from tests.cli.support import run_here
from tests.conftest import draw_shapes
from tests.processes import forked_command

EVIL = [
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "a\rb",
    "a\nb",
    "bell\a",
    "\x9b2J",
    "\u202egnp.exe",
    "\u2066x\u2069",
    "\ud800",
    "\udcff",
]
MARKUP = [
    "[red]x",
    "[/]",
    "[link=file:///]x[/link]",
    ":dog:",
    "{task.id}",
    "%s",
    "$x^$",
    r"\frac",
    r"$\frac$",
    "_",
    "^_",
    "#",
    "&",
    "~",
]
GLYPHS = ["\U0001f600", "\u4e2d\u6587", "\u0627\u0644", "\uffff"]


def is_clean(text: str) -> bool:
    return not [c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]


@pytest.mark.parametrize("name", EVIL)
def test_what_commands_a_terminal_is_escaped(name):
    assert is_clean(printable(name))
    assert "\n" not in printable(name)
    assert printable(name).encode("ascii").decode("unicode_escape") == name  # nothing is lost
    assert is_clean(message_line(f"cannot read {name}"))


@pytest.mark.parametrize("name", [*MARKUP, *GLYPHS, "\U0001f468\u200d\U0001f469", "B\u00e4r", "caf\u0065\u0301"])
def test_everything_else_stays(name):
    assert printable(name) == name


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("name", [*EVIL, *MARKUP])
def test_progress_and_tables_show_names(monkeypatch, name, terminal):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("FORCE_COLOR", "1") if terminal else monkeypatch.delenv("FORCE_COLOR", raising=False)
    with progress() as track:
        track(name, 1)()
    assert printable(name) in stream.getvalue()
    run = {"method": "coop", "accuracy": {name: 0.5}}
    table = io.StringIO()
    Console(file=table, width=100, force_terminal=False).print(
        accuracy_table([run], [name])
    )  # a console that would read markup
    assert f" {printable(name)} " in table.getvalue()
    assert is_clean(table.getvalue())


@pytest.fixture(scope="module")
def evil_data(tmp_path_factory) -> Path:
    """A set whose name, class folders and files are full of control characters."""
    root = tmp_path_factory.mktemp("evil")
    data = draw_shapes(root / "set\x1b[2J|[red]$x^$", per_class=4)
    for i, folder in enumerate(sorted(data.iterdir())):
        for file in folder.iterdir():
            file.rename(file.with_name(f"\x1b]0;x\x07{file.name}"))
        folder.rename(data / ("\x1b[31m" + ["[red]x", "$x^$", "\u202egnp", r"\frac_|"][i]))
    return data


def test_the_whole_way_of_a_set(evil_data, clip_dir, tmp_path, monkeypatch, capfd):
    model, out = ["--model", f"local-dir:{clip_dir}"], tmp_path / "run\x1b[2J"
    train = ["train", "--data", evil_data, "--shots", 1, "--epochs", 2, "--out", out, *model]
    file = next(evil_data.rglob("*.png"))
    grid = ["compare", "--data", evil_data, "--shots", "1,2", "--seeds", 1, "--methods", "coop,zero-shot"]
    (tmp_path / "settings.json").write_text('{"coop": {"epochs": 2}}')
    grid += ["--settings", tmp_path / "settings.json", "--out", tmp_path / "grid"]
    for command in (
        train,
        ["evaluate", out, "--data", evil_data, "--trust"],
        ["predict", out, file, "--trust"],
        [*grid, *model],
    ):
        assert run_here(monkeypatch, *command) == 0
        said = capfd.readouterr()
        assert is_clean(said.out + said.err), command[0]
    assert {path.name for path in (tmp_path / "grid").glob("*.png")} == {"shots.png", "conflict.png", "cost.png"}
    file.write_bytes(b"no picture")
    for command in ([*train, "--force", "--no-cache", "--shots", 4], ["predict", out, file], ["predict", file, file]):
        assert run_here(monkeypatch, *command) == 2
        said = capfd.readouterr()
        assert is_clean(said.out + said.err), command[0]
        assert len(said.err.splitlines()) == 1, said.err


OTHER_NAMES = [*EVIL[1:8], *MARKUP[:6], *MARKUP[7:], *GLYPHS[1:], "<script>"]


@pytest.mark.parametrize("i", range(4))
def test_a_comparison_is_written_whatever_sets_are_called(shapes, clip, tmp_path, i):
    # the first name is in the pictures' titles, too
    names = [[EVIL[0], "$x^$", GLYPHS[0], "a|b"][i], *OTHER_NAMES[i::4]]
    first, rows = replace(shapes, name=names[0]), range(len(shapes))
    tests = [row for row in rows if shapes.split[row] == "test"]
    # each other set lacks another test picture: equal sets are refused
    others = [replace(shapes.only([row for row in rows if row != tests[k]]), name=n) for k, n in enumerate(names[1:])]
    results = run_grid(Grid([ZeroShot()], [1, 2], 1), clip, first, tmp_path, lambda *_: lambda: None, transfer=others)
    stream = io.StringIO()
    report_comparison(results, tmp_path, Console(file=stream, width=400))
    assert all(printable(name) in stream.getvalue() for name in names)
    assert is_clean(stream.getvalue())
    text = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert is_clean(text)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {4 + len(others)}
    with Image.open(tmp_path / "shots.png") as figure:
        assert figure.width > 500


def test_warnings_are_lines_without_commands(monkeypatch):
    """In a process of its own, as a user sees them."""

    def run(arguments: list[str]) -> int:
        logging.lastResort = streams.LogLines()
        warnings.warn("w\x1b[2J", stacklevel=1)
        logging.getLogger("prograd_fast").warning("l\x1b[2J\nx")
        return 0

    monkeypatch.setattr("prograd_fast.cli.run", run)
    code, _, said = forked_command("methods").end()
    assert code == 0, said
    assert is_clean(said)
    assert "l\\x1b[2J x\n" in said
    assert "w\\x1b[2J" in said


def test_letters_that_an_encoding_lacks_are_escaped(capfd):
    stream = streams._stream(1, io.TextIOWrapper(io.BytesIO(), "ascii"))
    stream.write("B\u00e4r")
    stream.flush()
    assert capfd.readouterr().out == "B\\xe4r"


WIDE = [f"{shots} shots fluent-hc/new" for shots in (1, 2, 4, 8, 16, 32)]
LONG = "a method with a long name"


@pytest.mark.parametrize("columns", ["40", "80", None], ids=str)
def test_tables_are_whole(columns, monkeypatch, capsys):
    """A narrow terminal folds cells, and never cuts them; a pipe or file gets the table as wide as it is."""
    monkeypatch.setattr(output.console, "_width", None)  # COLUMNS of when it was made, which pytest-xdist sets
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    table = Table("method", *WIDE)
    table.add_row(LONG, *["79.3 \u00b1 10.1"] * len(WIDE))
    output.console.print(table)
    text = capsys.readouterr().out
    assert "\u2026" not in text
    cells = [line.split("\u2502")[1:-1] for line in text.splitlines() if "\u2502" in line]
    assert "".join("".join(column).replace(" ", "") for column in zip(*cells, strict=True)) == (
        LONG.replace(" ", "") + "79.3\u00b110.1" * len(WIDE)
    )
    if columns is not None:
        assert max(map(len, text.splitlines())) <= int(columns)
    else:
        assert len(text.splitlines()) == 5
