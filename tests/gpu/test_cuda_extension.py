"""The CUDA extension on a machine without a GPU: it is built, it loads, and the dispatcher has its kernels."""

import os
import shutil

import pytest
import torch

from prograd_fast.backends import cuda, extension
from prograd_fast.backends.choice import FAMILIES

OPERATORS = [name for family in FAMILIES.values() if "cuda" in family.backends for name in family.operators]

needs_nvcc = pytest.mark.skipif(
    shutil.which("nvcc") is None
    or torch.version.cuda is None
    or os.environ.get("PROGRAD_FAST_BUILD") in ("cpu", "none"),
    reason="no nvcc, a PyTorch without CUDA, or PROGRAD_FAST_BUILD without it: there is no CUDA extension to look at",
)


def registered() -> list[bool]:
    return [torch._C._dispatch_has_kernel_for_dispatch_key(f"prograd_fast::{name}", "CUDA") for name in OPERATORS]


@needs_nvcc
def test_kernels_are_registered_for_cuda_and_taken_out_again() -> None:
    assert hasattr(extension.EXTENSION, "register_cuda"), (
        "nvcc is here, but the installed extension was built without CUDA. "
        "Run: pip install --no-build-isolation --no-deps --editable ."
    )
    before = registered()
    unregister = cuda.register()
    found = registered()
    unregister()
    assert all(found)
    assert registered() == before


@needs_nvcc
def test_families_that_are_asked_for() -> None:
    """The families of the compiled kernels are those of the table, and no other operator is touched."""
    families = extension.EXTENSION.cuda_families()
    assert {*families, "linear_dual_loss"} == {name for name, family in FAMILIES.items() if "cuda" in family.backends}
    before = registered()
    for chosen in (("gelu", "linear_dual_loss"), ("attention",), ()):
        unregister = cuda.register(families=chosen)
        mine = {operator for name in chosen for operator in FAMILIES[name].operators}
        found = registered()
        unregister()
        assert found == [was or name in mine for name, was in zip(OPERATORS, before, strict=True)]
        assert registered() == before
    with pytest.raises(ValueError, match="no kernels of sorting"):
        cuda.register(families=["sorting"])
    assert registered() == before


@needs_nvcc
def test_build_facts_name_the_architectures() -> None:
    facts = extension.EXTENSION.build_facts()
    assert {"80-real", "90-real", "100"} <= set(facts["cuda_architectures"].split())


def test_missing_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "Install" in (cuda.missing() or "")
    monkeypatch.setattr(extension, "EXTENSION", object())
    assert "without CUDA" in (cuda.missing() or "")
