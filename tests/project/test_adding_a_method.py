"""docs/adding-a-method.md, carried out on a copy of the package: the method trains by its name."""

import json
import os
import shutil
import subprocess
import sys

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
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, train, evaluate],
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
    assert "anchored" in done.stdout.partition(evaluate)[2]
