"""Pictures: the embedded sets, the sets of the benchmark, folders of a user's own, splits and few-shot sampling."""

from pathlib import Path
from typing import Any

from prograd_fast.data.benchmarks import BENCHMARKS, load_benchmark
from prograd_fast.data.content_split import TEST_SHARE
from prograd_fast.data.embedded import EMBEDDED, EMOJI_TASK_STYLES, EMOJI_UNSEEN_STYLES, load_embedded
from prograd_fast.data.folder import load_folder, with_fold
from prograd_fast.data.pictures import PictureSet

__all__ = [
    "BENCHMARKS",
    "EMBEDDED",
    "EMOJI_TASK_STYLES",
    "EMOJI_UNSEEN_STYLES",
    "PictureSet",
    "load",
    "load_benchmark",
    "load_embedded",
    "load_folder",
    "with_fold",
]


def load(
    name_or_path: str | Path,
    test_share: float = TEST_SHARE,
    fold: tuple[int, int] | None = None,
    root: str | Path | None = None,
    **options: Any,
) -> PictureSet:
    """Load an embedded set ("emoji" or "clipart"), a set of the benchmark ("caltech101"), or a folder of pictures.

    Args:
        name_or_path: The name or the path.
        test_share: As in `load_folder`; a set with a name has its own split.
        fold: Likewise.
        root: The folder that holds the sets of the benchmark, see `load_benchmark`; other sets do not need it.
        options: More of `load_folder`; they change nothing for a set with a name.

    Raises:
        ValueError: it is none of them, the folder is not laid out as `load_folder` or `load_benchmark` expects, a share
            or a fold is given for a set with a split of its own, or a set of the benchmark has no root.
    """
    name = str(name_or_path)
    if name_or_path in EMBEDDED or (name in BENCHMARKS and root is not None):
        if fold is not None or test_share != TEST_SHARE:
            raise ValueError(f"the set {name!r} has its own split; a test share or folds are for folders")
        return load_embedded(name) if root is None or name in EMBEDDED else load_benchmark(name, root)
    if not Path(name_or_path).is_dir():
        if name in BENCHMARKS:
            raise ValueError(
                f"the set {name!r} needs a root, the folder that holds {BENCHMARKS[name].folder}/ (--root)"
            )
        raise ValueError(
            f"no picture set or folder {name!r}: expected {', '.join(EMBEDDED)}, a folder's path, or a set of "
            "`prograd-fast data list`"
        )
    return load_folder(Path(name_or_path), test_share, fold, **options)
