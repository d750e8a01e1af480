"""The core needs torch alone; what needs more says what to install."""

import subprocess
import sys

import pytest

import prograd_fast as pf

EXTRAS = ["open_clip", "torchvision", "safetensors", "PIL", "timm", "sklearn", "matplotlib", "typer", "rich"]


def test_nets_need_torch_alone():
    """In a fresh interpreter, where nothing else has been imported yet, and with the extras made unimportable."""
    code = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS})); import prograd_fast.clip as c; c.PromptedCLIP"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_package_tells_the_remedy(monkeypatch):
    monkeypatch.delitem(sys.modules, "prograd_fast.clip.prompt_file", raising=False)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"save_prompt needs.*safetensors.*pip install 'prograd-fast\[clip\]'"
    ):
        _ = pf.clip.save_prompt


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'load_promt'"):
        _ = pf.clip.load_promt
