"""docs/what-can-go-wrong.md: what it measures is measured by its tool, and its commands and blocks run."""

import json
import re
import shlex
import shutil
from dataclasses import replace

import numpy as np
import pytest

from prograd_fast import cli
from tools import measured_methods, pitfalls, which_method

PAGE = pitfalls.PAGE.read_text(encoding="utf-8")
COMMANDS = re.findall(r"^      (prograd-fast .*)$", PAGE, re.MULTILINE)


def rows(table: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]


def block(name: str, command: str) -> str:
    begin, end = f"<!-- {name}: written by {command} -->\n", f"<!-- end of {name} -->"
    return PAGE.partition(begin)[2].partition(end)[0]


def test_every_mistake_of_the_table_is_made(clip, shapes):
    """On drawings of four shapes and a tiny model: the mistakes are those of the page, in its order."""
    drawn = replace(shapes, style=np.full(len(shapes), pitfalls.EMOJI_TASK_STYLES[0]))
    made = rows(pitfalls.effects(clip, pitfalls.look(clip, drawn), partitions=1, seeds=1, epochs=2))
    told = rows(block("effects", pitfalls.COMMAND))
    assert [re.sub(r"[\d.]+", "0", row[0]) for row in made] == [re.sub(r"[\d.]+", "0", row[0]) for row in told]
    assert {len(row) for row in made + told} == {3}


def test_the_table_of_runs_is_that_of_the_study():
    runs = which_method.read(which_method.MEASURED)
    assert block("draws", which_method.COMMAND) == measured_methods.spread_of_runs(runs), f"run {which_method.COMMAND}"


def test_mistakes_change_what_they_should(clip, shapes):
    """The other activation changes features; another scale the confidences alone; another order everything."""
    features = pitfalls.encode_pictures(clip, shapes, np.arange(len(shapes)))
    part = pitfalls.Part(np.arange(4), np.arange(len(shapes)))
    right = pitfalls.zero_shot(clip, features, part)
    swapped = pitfalls.zero_shot(pitfalls.changed(clip, pitfalls.swap_activation), features, part)
    again = pitfalls.zero_shot(clip, features, part)
    assert (again.probabilities == right.probabilities).all()  # the model itself was not changed
    assert not np.allclose(swapped.probabilities, right.probabilities, atol=1e-6)
    loud = pitfalls.changed(clip, lambda model: model.logit_scale.data.fill_(3.0))
    louder = pitfalls.zero_shot(loud, features, part)
    assert (louder.predicted == right.predicted).all()
    assert not np.allclose(louder.probabilities, right.probabilities, atol=1e-6)


@pytest.mark.slow
def test_commands_run_in_their_order(tmp_path, shapes_dir, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(shapes_dir, "my_pictures")
    assert len(COMMANDS) >= 10
    for command in COMMANDS:
        found = 3 if "data check" in command else 0  # so small pictures of one shape look alike, and it says so
        assert cli.run(shlex.split(command)[1:]) == found, command
    first, again = (json.loads((tmp_path / "runs" / name / "record.json").read_text()) for name in ("zero", "again"))
    assert first["accuracy"] == again["accuracy"]  # as the page says of the cache


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_blocks_run(code):
    exec(compile(code, "page", "exec"), {"__name__": "page"})
