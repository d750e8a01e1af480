"""docs/moving-from-coop.md: every option and setting that it names is there, and its block runs."""

import re
import shlex

import pytest
import typer

from prograd_fast.cli.app import app
from prograd_fast.methods import METHODS
from tests.paths import REPOSITORY

PAGE = (REPOSITORY / "docs" / "moving-from-coop.md").read_text(encoding="utf-8")
OPTIONS = PAGE.partition("## Options")[2].partition("## Checkpoints")[0]
OURS = " ".join(line.split(" | ")[1] for line in OPTIONS.splitlines() if line.startswith("|"))
GROUP = typer.main.get_command(app)


def test_options_are_there():
    known = {name for command in ("train", "compare") for p in GROUP.commands[command].params for name in p.opts}
    known |= {
        name for command in ("train", "compare") for p in GROUP.commands[command].params for name in p.secondary_opts
    }
    named = set(re.findall(r"--[a-z][\w-]*", OURS))
    assert len(named) > 15
    assert named <= known


def test_settings_methods_and_presets_are_there():
    fields = {name for method in METHODS for name in method.__dataclass_fields__}
    assert set(re.findall(r"--set '?(\w+)=", OURS)) <= fields
    named = {method.name: method for method in METHODS}
    assert {"coop", "cocoop", "prograd", "kgcoop"} <= named.keys()
    for method, preset in re.findall(r"--method (\S+) --preset (\S+)", PAGE):
        assert preset in named[method].presets


@pytest.mark.parametrize("page", ["moving-from-coop.md", "which-method.md"])
def test_commands_are_understood(page):
    """Parsed, not run: they name sets and weights that nobody has here."""
    text = (REPOSITORY / "docs" / page).read_text(encoding="utf-8")
    commands = re.findall(r"^    prograd-fast (\w+) (.*)$", text, re.MULTILINE)
    assert commands
    for name, arguments in commands:
        command = GROUP.commands[name]
        with command.make_context(name, shlex.split(arguments)) as context:
            assert context.params["data"]


def test_checkpoints_move(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "page", "exec"), {"__name__": "page"})
    assert re.fullmatch(r"\(4, \d+\) context after 50 epochs\n", capsys.readouterr().out)
    assert (tmp_path / "coop.safetensors").is_file()
