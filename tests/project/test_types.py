"""Guards what a type checker tells a user: the rooms that are loaded late are typed, and calls give tensors."""

import re
import subprocess
import sys

import pytest

import prograd_fast as pf
from tests.paths import REPOSITORY

USE = """
import torch
import prograd_fast as pf

x, y = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
reveal_type(pf.DualLoss()(x, x, labels=y))
reveal_type(pf.losses.SoftWing()(x, x))
pf.clip.PromptedClip
pf.data.load_folders
pf.DualLos
"""


@pytest.mark.slow
def test_a_type_checker_knows_the_package(tmp_path):
    file = tmp_path / "use.py"
    file.write_text(USE)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(file)]
    said = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY).stdout
    found = re.findall(rf"{file.name}:(\d+): \w+: (.*)", said)
    assert [line for line, _ in found] == ["6", "7", "8", "9", "10"], said
    types, messages = found[:2], [message for _, message in found[2:]]
    assert types[0][1].count("torch._tensor.Tensor") == 2
    assert types[1][1] == 'Revealed type is "torch._tensor.Tensor"'
    for name, message in zip(("PromptedClip", "load_folders", "DualLos"), messages, strict=True):
        assert f'has no attribute "{name}"' in message


def test_the_package_lists_what_is_public():
    assert dir(pf) == pf.__all__
