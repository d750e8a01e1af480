"""Builds the wheels into dist/, audits them and tries them in environments that have nothing else: `make wheels`.

    prograd_fast-V+torchX.Y-...-manylinux_...whl   the core with its kernels, for this Python and this minor PyTorch
    prograd_fast-V-py3-none-any.whl                the core in pure Python, for every other
    prograd_fast_demo-V-py3-none-any.whl           the embedded pictures and models

PROGRAD_FAST_BUILD=cpu (default) compiles the kernels for CPUs; =require those for GPUs, too, which needs nvcc.
docs/packaging.md says why there is one wheel for each minor release.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch

REPOSITORY = Path(__file__).parents[1]
DIST = REPOSITORY / "dist"
CORE_BYTES = 3_000_000  # at most, without CUDA
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")
# PyTorch's, which has loaded them before; they are not copied into the wheel
NOT_OURS = ("libtorch*", "libc10*", "libcudart*")

TRIAL = """
import sys
import torch, prograd_fast as pf

assert pf.__file__.startswith(sys.prefix), pf.__file__
weight = torch.nn.Parameter(torch.ones(2))
optimizer = pf.ProGradSGD([weight], lr=1.0)
optimizer.backward(2 * weight[0] + weight[1], -weight[0])  # (2, 1) against (-1, 0): what is left is (0, 1)
optimizer.step()
assert weight.tolist() == [1.0, 0.0], weight
print("the step is right, on the backend", pf.backends.active()["cpu"])
print(pf.show_config())
"""
DEMO_TRIAL = """
import prograd_fast as pf

print(len(pf.data.load("emoji")), "pictures and", len(list(pf.clip.load_emoji_lite()[0].parameters())), "parameters")
"""


def run(*command: str | Path, **environment: str) -> str:
    """The output of a command in the repository.

    Raises:
        RuntimeError: it failed.
    """
    done = subprocess.run(
        [str(part) for part in command],
        cwd=REPOSITORY,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return done.stdout + done.stderr


def build_sdist(folder: Path) -> Path:
    """The source distribution of the core."""
    run(sys.executable, "-c", f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})")
    (sdist,) = folder.glob("prograd_fast-*.tar.gz")
    return sdist


def build_wheel(source: Path, folder: Path, kernels: str, label: str = "") -> tuple[Path, str]:
    """The wheel of a source tree or distribution, and the output.

    Args:
        source: of it.
        folder: for it, empty.
        kernels: as PROGRAD_FAST_BUILD has it.
        label: a local version that is added, such as "+torch2.14".
    """
    with tempfile.NamedTemporaryFile("w", suffix=".cfg") as settings:
        settings.write(f"[egg_info]\ntag_build = {label}\n")
        settings.flush()
        output = run(
            *(*PIP, "wheel", "--verbose", "--no-build-isolation", "--no-deps", "--no-index", "-w", folder, source),
            PROGRAD_FAST_BUILD=kernels,
            DIST_EXTRA_CONFIG=settings.name,
        )
    (wheel,) = folder.glob("*.whl")
    return wheel, output


def environment_of(folder: Path, *wheels: Path) -> Path:
    """The Python of a new environment with these wheels alone, and whatever else this Python sees behind them.

    A .pth file shows it PyTorch's folder; .pth files in there, such as those of editable installations, are not read.
    """
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    site = Path(run(python, "-I", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "behind.pth").write_text("\n".join(path for path in sys.path if Path(path).name == "site-packages"))
    run(*PIP, "install", "--quiet", "--no-deps", "--no-index", "--target", site, *wheels)
    return python


def audit(wheel: Path, folder: Path) -> Path:
    """The wheel under the oldest platform tag that fits it.

    Raises:
        RuntimeError: it needs a library that is neither PyTorch's nor the system's.
    """
    print(run(sys.executable, "-m", "auditwheel", "show", wheel))
    exclude = [option for library in NOT_OURS for option in ("--exclude", library)]
    run(sys.executable, "-m", "auditwheel", "repair", *exclude, "--wheel-dir", folder, wheel)
    (repaired,) = folder.glob("*.whl")
    with zipfile.ZipFile(repaired) as archive:
        copied = [name for name in archive.namelist() if ".libs/" in name]
    if copied:
        raise RuntimeError(f"{repaired.name} would bring libraries that it should find: {', '.join(copied)}")
    return repaired


def label_of(torch_version: str, cuda: str | None) -> str:
    """The local version of a wheel for this PyTorch: "+torch2.14", or "+torch2.14.cu130" with kernels for GPUs."""
    release = re.match(r"\d+\.\d+", torch_version)
    assert release is not None
    return f"+torch{release[0]}" + (f".cu{cuda.replace('.', '')}" if cuda else "")


def main() -> None:
    """Build, audit, try."""
    kernels = os.environ.get("PROGRAD_FAST_BUILD", "cpu")
    cuda = torch.version.cuda if kernels == "require" else None
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        for name in ("compiled", "audited", "pure", "demo"):
            (work / name).mkdir()
        sdist = build_sdist(work)
        compiled, _ = build_wheel(sdist, work / "compiled", kernels, label_of(torch.__version__, cuda))
        audited = audit(compiled, work / "audited")
        pure, _ = build_wheel(sdist, work / "pure", "none")
        demo, _ = build_wheel(REPOSITORY / "prograd_fast_demo", work / "demo", "none")
        for wheel, backend, also in ((audited, "cpu", [demo]), (pure, "reference", [])):
            python = environment_of(work / f"with-{backend}", wheel, *also)
            told = run(python, "-I", "-c", TRIAL)
            print(told)
            if f"on the backend {backend}\n" not in told:
                raise RuntimeError(f"{wheel.name}: expected the backend {backend}")
            if also:
                print(run(python, "-I", "-c", DEMO_TRIAL))
        for file in (sdist, audited, pure, demo):
            shutil.copy(file, DIST)
            print(f"{file.stat().st_size:>11,} bytes  dist/{file.name}")
        if cuda is None and audited.stat().st_size > CORE_BYTES:
            raise RuntimeError(f"{audited.name} has more than {CORE_BYTES:,} bytes")


if __name__ == "__main__":
    main()
