"""Guards the core install: it needs torch alone, and the rest tells what to install."""

import subprocess
import sys

import pytest

import prograd_fast as pf
from prograd_fast.installation import to_install
from tests.tiny_clip import CLASS_NAMES, TOKENIZER, tiny_clip

EXTRAS = ["open_clip", "torchvision", "safetensors", "numpy", "PIL", "timm", "sklearn", "matplotlib", "typer", "rich"]


def in_core_install(code: str) -> subprocess.CompletedProcess[str]:
    """Run in a fresh interpreter, where nothing else has been imported yet, and with the extras made unimportable."""
    code = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS})); {code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_clip_room_needs_torch_alone():
    done = in_core_install("import prograd_fast.clip as c; [getattr(c, name) for name in c.__all__]")
    assert done.returncode == 0, done.stderr


def test_only_what_is_computed_with_scikit_learn_and_scipy_needs_them():
    code = (
        "import sys; sys.modules.update(sklearn=None, scipy=None); import prograd_fast.methods, prograd_fast.training"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_doctor_needs_torch_alone():
    done = in_core_install("sys.argv[1:] = ['doctor']; from prograd_fast.__main__ import main; main()")
    assert done.returncode == 0, done.stderr
    assert "PyTorch" in done.stdout


def test_other_commands_tell_what_to_install():
    calls = [("train", "--data", "emoji"), ("doctor", "--help"), ()]
    done = in_core_install(
        f"""
from prograd_fast.__main__ import main
for sys.argv[1:] in {calls}:
    try:
        main()
    except SystemExit as end:
        print(end.code)
"""
    )
    assert done.stdout.split() == ["2"] * len(calls)
    told = f"prograd-fast: typer is not installed: {to_install('cli')}"
    lines = [line for line in done.stderr.splitlines() if line.startswith(("Traceback", "prograd-fast"))]
    assert lines == [told] * len(calls)  # beside them PyTorch warns that NumPy is missing


@pytest.mark.parametrize("use", [lambda: pf.clip.load_prompt("x"), lambda: save_some_prompt()], ids=["load", "save"])
def test_prompt_files_tell_what_to_install(monkeypatch, use):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"need safetensors, which is not installed: pip install .*safetensors>="
    ):
        use()


def save_some_prompt() -> None:
    pf.clip.save_prompt("x", pf.clip.PromptedCLIP(tiny_clip(), TOKENIZER, CLASS_NAMES, 3))
