"""Builds the compiled kernels with CMake and ninja against the installed PyTorch; everything else: pyproject.toml.

pip builds in an environment of its own, which has no PyTorch: then that of the Python that pip runs on is taken.
Without a compiler, CMake or PyTorch the installation goes on in pure Python. Where only the CUDA kernels cannot be
compiled, it goes on with those for CPUs. Why nothing was compiled is printed, and written to
prograd_fast/not_compiled.txt for `doctor`.
PROGRAD_FAST_BUILD: "auto" (default) builds what it can; "cpu" leaves CUDA out; "none" builds nothing; "require" fails
where "auto" would go on without.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

BUILD = os.environ.get("PROGRAD_FAST_BUILD", "auto")
ROOT = Path(__file__).parent
# Python as it is here; and without the variables by which pip hides what is installed beside it
PYTHON_FLAGS = ("", "-E")


# pip puts CMake and ninja beside the Python that runs this, which need not be on the PATH
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def find_torch() -> tuple[str, str] | None:
    """The flag with which Python sees PyTorch, and the CUDA version that it was built for, "None" for none."""
    for flag in PYTHON_FLAGS:
        command = [sys.executable, *flag.split(), "-c", "import torch; print(torch.version.cuda)"]
        found = subprocess.run(command, capture_output=True, text=True, cwd="/")
        if found.returncode == 0:
            return flag, found.stdout.strip()
    return None


TORCH = None if BUILD == "none" else find_torch()


def what_is_missing() -> str | None:
    """Why nothing can be compiled here, or None."""
    if BUILD == "none":
        return "PROGRAD_FAST_BUILD=none"
    if TORCH is None:
        return "the build saw no PyTorch"
    if shutil.which("cmake") is None:
        return "cmake was not found"
    if shutil.which(os.environ.get("CXX", "c++")) is None and shutil.which("clang++") is None:
        return "a C++ compiler was not found"
    return None


def cuda_options() -> list[str]:
    """CMake's options for CUDA, where PyTorch was built for it and its compiler is here."""
    nvcc = shutil.which("nvcc") or str(Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "nvcc")
    if BUILD == "cpu" or TORCH[1] == "None" or not Path(nvcc).exists():
        return []
    return ["-DPF_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={nvcc}"]


def tell(package: Path, reason: str | None) -> None:
    """Print and write why nothing was compiled, for the package that is built in this folder; None: all is well."""
    file = package / "not_compiled.txt"
    file.unlink(missing_ok=True)
    if reason is None:
        return
    if BUILD == "require":
        raise SystemExit(f"prograd_fast: the kernels were not compiled: {reason}.")
    print(f"prograd_fast: installing in pure Python, without compiled kernels: {reason}.", file=sys.stderr)
    file.write_text(reason)


class Build(build_py):
    """The Python files, and why there are no others."""

    def run(self) -> None:
        """Copy the files, in an editable installation none."""
        super().run()
        if not self.distribution.ext_modules:
            tell((ROOT if self.editable_mode else Path(self.build_lib)) / "prograd_fast", what_is_missing())


class CMakeBuild(build_ext):
    """One CMake project for the one extension."""

    def build_extension(self, ext: Extension) -> None:
        """Build the extension, or say why not and go on."""
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        cuda = cuda_options()
        failure = self.run_cmake(output, cuda)
        if failure is not None and cuda and BUILD != "require":
            print(f"prograd_fast: installing without CUDA kernels: {failure}.", file=sys.stderr)
            failure = self.run_cmake(output, [])
        tell(output, failure)

    def run_cmake(self, output: Path, cuda: list[str]) -> str | None:
        """Configure and build; the module goes to `output`. Why it failed, or None."""
        build = Path(self.build_temp).resolve() / (
            "cuda" if cuda else "cpu"
        )  # a failed configuration is not used again
        ninja = ["-G", "Ninja"] if shutil.which("ninja") else []
        options = [f"-DPython_EXECUTABLE={sys.executable}", f"-DPF_PYTHON_FLAGS={TORCH[0]}"]
        options += [f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output}"]
        for command in (
            ["cmake", "-S", str(ROOT), "-B", str(build), *ninja, *options, *cuda],
            ["cmake", "--build", str(build), "--parallel", str(os.cpu_count())],
        ):
            if subprocess.run(command).returncode:
                return f"{' '.join(command[:2])} ... failed; pip's option -v shows why"
        return None


# without a compiled module the wheel is for any Python and platform; optional: a module that could not be built must
# not make copying fail
extensions = [] if what_is_missing() else [Extension("prograd_fast._C", sources=[], optional=True)]
setup(ext_modules=extensions, cmdclass={"build_py": Build, "build_ext": CMakeBuild})
