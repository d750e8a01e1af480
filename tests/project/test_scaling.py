"""docs/scaling.md: every block runs on two processes."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from tests.conftest import draw_shapes
from tests.paths import REPOSITORY

PAGE = (REPOSITORY / "docs" / "scaling.md").read_text("utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)


def torchrun(arguments, folder):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *arguments]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    for _ in range(2):
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        # seen once in some forty runs, on a busy machine: gloo's threads at the end of the interpreter, torch 2.14
        if "terminate called without an active exception" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr


def test_all_blocks_are_run():
    assert PAGE.count("```") == 2 * (len(EXAMPLES) + len(COMMANDS))


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example(number, tmp_path):
    file = tmp_path / "example.py"
    file.write_text(EXAMPLES[number], "utf-8")
    torchrun(["--nproc-per-node", "2", file], tmp_path)


@pytest.mark.parametrize("number", range(len(COMMANDS)))
def test_command(number, tmp_path):
    draw_shapes(tmp_path / "shapes")
    program, *arguments = shlex.split(COMMANDS[number])
    assert program == "torchrun"
    torchrun(arguments, tmp_path)
    assert (tmp_path / "run").is_dir()
