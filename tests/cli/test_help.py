"""The help pages fit a screen: what a first use needs stands before all else."""

import pytest

from tests.cli.support import run_here

PAGES = {
    "train": (95, ("--data", "--out", "--method", "--shots", "--model", "--pretrained", "--resume", "--help")),
    "compare": (71, ("--data", "--out", "--methods", "--shots", "--seeds", "--model", "--pretrained", "--help")),
    "reproduce": (69, ("--table", "--root", "--model", "--out", "--pretrained", "--plan", "--help")),
    "evaluate": (40, ("--data", "--csv", "--json", "--model")),
    "predict": (40, ("--top", "--classes", "--csv", "--json", "--html")),
    "report": (40, ("--out",)),
    "export": (40, ("--to", "--out")),
    "interpret": (40, ("--top",)),
    "models": (40, ()),
}


@pytest.mark.parametrize("command", PAGES)
def test_the_first_screen_has_what_a_beginner_needs(command, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert run_here(monkeypatch, command, "--help") == 0
    lines = capfd.readouterr().out.splitlines()
    most, options = PAGES[command]
    assert len(lines) <= most
    assert max(map(len, lines)) <= 80
    first_screen = "\n".join(lines[:40])
    assert [option for option in options if f" {option} " not in first_screen] == []


@pytest.mark.parametrize("group", ["data", "cache"])
def test_a_group_alone_shows_its_help(group, capfd, monkeypatch):
    assert run_here(monkeypatch, group) == 0
    said = capfd.readouterr()
    assert "Commands" in said.out
    assert said.err == ""
