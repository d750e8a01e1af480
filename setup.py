"""Builds the compiled kernels with CMake and ninja against the installed PyTorch; everything else: pyproject.toml.

Without a compiler, CMake or PyTorch at hand the installation goes on in pure Python and says so in one line. Where only
the CUDA kernels cannot be compiled, it goes on with those for CPUs.
PROGRAD_FAST_BUILD: "auto" (default) builds what it can; "cpu" leaves CUDA out; "none" builds nothing; "require" fails
where "auto" would go on without.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

BUILD = os.environ.get("PROGRAD_FAST_BUILD", "auto")
ROOT = Path(__file__).parent


# pip puts CMake and ninja beside the Python that runs this, which need not be on the PATH
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def what_is_missing() -> str | None:
    """Why nothing can be compiled here, or None."""
    if BUILD == "none":
        return "PROGRAD_FAST_BUILD=none"
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not visible to the build: install it first, then pip install --no-build-isolation"
    if shutil.which("cmake") is None:
        return "cmake was not found"
    if shutil.which(os.environ.get("CXX", "c++")) is None and shutil.which("clang++") is None:
        return "a C++ compiler was not found"
    return None


def cuda_options() -> list[str]:
    """CMake's options for CUDA, where PyTorch was built for it and its compiler is here."""
    import torch

    nvcc = shutil.which("nvcc") or str(Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "nvcc")
    if BUILD == "cpu" or torch.version.cuda is None or not Path(nvcc).exists():
        return []
    return ["-DPF_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={nvcc}"]


class CMakeBuild(build_ext):
    """One CMake project for the one extension."""

    def build_extension(self, ext: Extension) -> None:
        """Build the extension, or say why not and go on."""
        missing = what_is_missing()
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        if missing is None:
            cuda = cuda_options()
            missing = self.run_cmake(output, cuda)
            if missing is not None and cuda and BUILD != "require":
                print(f"prograd_fast: installing without CUDA kernels: {missing}.", file=sys.stderr)
                missing = self.run_cmake(output, [])
        if missing is None:
            return
        if BUILD == "require":
            raise SystemExit(f"prograd_fast: the kernels were not compiled: {missing}.")
        print(f"prograd_fast: installing in pure Python, without compiled kernels: {missing}.", file=sys.stderr)

    def run_cmake(self, output: Path, cuda: list[str]) -> str | None:
        """Configure and build; the module goes to `output`. Why it failed, or None."""
        build = Path(self.build_temp).resolve() / (
            "cuda" if cuda else "cpu"
        )  # a failed configuration is not used again
        ninja = ["-G", "Ninja"] if shutil.which("ninja") else []
        options = [f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output}"]
        for command in (
            ["cmake", "-S", str(ROOT), "-B", str(build), *ninja, *options, *cuda],
            ["cmake", "--build", str(build), "--parallel", str(os.cpu_count())],
        ):
            if subprocess.run(command).returncode:
                return f"{' '.join(command[:2])} ... failed (see above)"
        return None


# optional: copying the module into the wheel must not fail where there is none
setup(ext_modules=[Extension("prograd_fast._C", sources=[], optional=True)], cmdclass={"build_ext": CMakeBuild})
