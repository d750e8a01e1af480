"""docs/adding-a-method.md, carried out on a copy of the package: every command knows the method by its name."""

import csv
import json
import os
import shutil
import subprocess
import sys

from tests.data import layouts
from tests.paths import REPOSITORY
from tests.project.pages import carry_out

PAGE = (REPOSITORY / "docs" / "adding-a-method.md").read_text(encoding="utf-8")

# in one process: the imports take longer than the commands
COMMANDS = """
import sys
from prograd_fast import cli
for command in sys.argv[1:]:
    print(command)
    if cli.run(command.split()):
        sys.exit(1)
sys.path.append({repository!r})  # for tools alone: the package was imported before
from prograd_fast.methods import METHODS
from tools.study.entries import entries
print("the study tries", *entries(METHODS[-1])[0].candidates())
"""


def test_page_as_it_stands(tmp_path, shapes_dir, clip_dir):
    package = tmp_path / "prograd_fast"
    package.mkdir()
    for part in (REPOSITORY / "prograd_fast").iterdir():
        if part.name != "methods":
            (package / part.name).symlink_to(part)
    shutil.copytree(REPOSITORY / "prograd_fast" / "methods", package / "methods")
    (source,) = carry_out(PAGE, tmp_path)
    assert len(source.read_text(encoding="utf-8").splitlines()) <= 40

    few = f"--shots 2 --epochs 3 --model local-dir:{clip_dir}"
    train = f"train --data {shapes_dir} --method anchored --set weight=10 {few} --out run"
    evaluate = f"evaluate run --data {shapes_dir} --trust"
    (tmp_path / "few.json").write_text('{"coop": {"epochs": 3}, "anchored": {"epochs": 3}}')
    grid = f"--data {shapes_dir} --settings few.json --shots 1 --seeds 1 --model local-dir:{clip_dir} --out grid"
    layouts.make_split(tmp_path / "data", "dtd")
    again = f"--root data --datasets dtd --shots 1 --seeds 1 --model local-dir:{clip_dir} --no-cache --out again"
    commands = [
        train,
        evaluate,
        "report run --out page.html",
        f"compare --methods coop,anchored {grid}",
        f"reproduce anchored --table base-to-new {again}",
    ]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS.format(repository=str(REPOSITORY)), *commands],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["method"] == "anchored"
    assert record["settings"]["weight"] == 10
    assert "anchored" in done.stdout.partition(evaluate)[2].partition("report run")[0]
    assert "anchored" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "| anchored | 1 |" in (tmp_path / "grid" / "tables.md").read_text(encoding="utf-8")
    with (tmp_path / "again" / "anchored-base-to-new-plan.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["preset"], row["epochs"]) == ("vit-b16-base-to-new", "50")
    with (tmp_path / "again" / "anchored-base-to-new.csv").open(newline="") as file:
        assert [(row["method"], row["what"]) for row in csv.DictReader(file)] == [
            ("anchored", what) for what in ("base", "new", "h")
        ]
    assert done.stdout.count("{'lr': ") == 12  # the settings that the study tries
