"""The core needs torch alone; what needs more says what to install."""

import subprocess
import sys

import pytest

import prograd_fast as pf
from tests.tiny_clip import CLASS_NAMES, TOKENIZER, tiny_clip

EXTRAS = ["open_clip", "torchvision", "safetensors", "numpy", "PIL", "timm", "sklearn", "matplotlib", "typer", "rich"]


def in_core_install(code: str) -> subprocess.CompletedProcess[str]:
    """Run in a fresh interpreter, where nothing else has been imported yet, and with the extras made unimportable."""
    code = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS})); {code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return in_core_install(f"sys.argv[1:] = {arguments}; from prograd_fast.__main__ import main; main()")


def test_clip_room_needs_torch_alone():
    done = in_core_install("import prograd_fast.clip as c; [getattr(c, name) for name in c.__all__]")
    assert done.returncode == 0, done.stderr


def test_doctor_needs_torch_alone():
    done = command("doctor")
    assert done.returncode == 0, done.stderr
    assert "PyTorch" in done.stdout


@pytest.mark.parametrize("arguments", [("train", "--data", "emoji"), ("doctor", "--help"), ()])
def test_other_commands_tell_what_to_install(arguments):
    done = command(*arguments)
    assert done.returncode == 2
    *warnings, last = done.stderr.splitlines()  # PyTorch warns that NumPy is missing
    assert last == 'prograd-fast: typer is not installed: pip install "prograd-fast[demo]"'
    assert not any(line.startswith(("Traceback", "prograd-fast")) for line in warnings)


@pytest.mark.parametrize("use", [lambda: pf.clip.load_prompt("x"), lambda: save_some_prompt()], ids=["load", "save"])
def test_prompt_files_tell_what_to_install(monkeypatch, use):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ModuleNotFoundError, match=r"need safetensors, which is not installed: pip install .*\[clip\]"):
        use()


def save_some_prompt() -> None:
    pf.clip.save_prompt("x", pf.clip.PromptedCLIP(tiny_clip(), TOKENIZER, CLASS_NAMES, 3))
