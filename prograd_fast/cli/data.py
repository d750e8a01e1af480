"""The commands `data list`, `data check` and `data prepare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from prograd_fast.cli.options import Root
from prograd_fast.cli.pictures import open_pictures
from prograd_fast.terminal.output import Table, console, progress, say

if TYPE_CHECKING:
    from prograd_fast.data import PictureSet

data_app = typer.Typer(help="Look at pictures before anything is trained on them.", no_args_is_help=True)

PROBLEMS = 3  # exit code where something is missing or wrong
_NAMED = 10  # missing pictures; all are counted

_FOLDER = "Check this folder, which has one folder of pictures per class, this embedded set, or this set in --root."
_NAME = "Prepare this set of `prograd-fast data list`."


@data_app.command(name="list")
def list_sets(root: Root = None) -> None:
    """List the sets of the benchmark: classes, folder, ProGrad's template, and the torchvision class that downloads it.

    Example: [bold]prograd-fast data list --root DATA[/bold]

    With a root, the last column tells whether all files of the set are there.
    """
    from prograd_fast.data import BENCHMARKS
    from prograd_fast.methods.templates import DATASETS

    if root is not None:
        _check_root(root)
    table = Table("set", "classes", "folder", "template", "download", *(["in the root"] if root else []))
    for name, one in BENCHMARKS.items():
        template = DATASETS.get(one.coop_name, DATASETS["ImageNet"])
        found = [] if root is None else ["complete" if not one.missing(root) else "incomplete"]
        table.add_row(name, str(one.classes), f"{one.folder}/", template, one.torchvision or "by hand", *found)
    console.print(table)


@data_app.command()
def check(folder: Annotated[str, Argument(metavar="DIR|NAME", help=_FOLDER)], root: Root = None) -> None:
    """Count pictures, decode each, and find copies and near copies between training and test.

    Example: [bold]prograd-fast data check my_pictures[/bold]

    Of a set of the benchmark, tell which files are missing and where they
    belong: [bold]prograd-fast data check caltech101 --root DATA[/bold]

    The exit code is 0 if nothing is wrong, and 3 if there are problems.
    """
    from prograd_fast.data import BENCHMARKS
    from prograd_fast.data.check import NAMED, check_pictures

    if root is not None and folder in BENCHMARKS:
        _check_root(root)
        _check_benchmark(folder, root)
        return
    unreadable: list[str] = []
    pictures = open_pictures(folder, unreadable=unreadable)
    with progress() as track:
        found = check_pictures(pictures, unreadable, track("looking at the pictures", len(pictures)))
    table = Table("class", "to learn from", "validation", "test", "all")
    for name, parts in found.counts:
        table.add_row(name, *map(str, parts), str(sum(parts)))
    console.print(table)
    if found.sizes:
        say(f"Sizes in pixels: {found.sizes}")
    for problem in found.problems:
        say(f"Problem: {problem}.")
    if len(found.unreadable) > NAMED:
        for line in found.unreadable:
            say(line)
    if found.problems:
        raise typer.Exit(PROBLEMS)
    say("No problem found.")


@data_app.command()
def prepare(
    name: Annotated[str, Argument(metavar="NAME", help=_NAME)],
    root: Annotated[Path, Option(metavar="DIR", help="Put the set into this folder, which is made.")],
) -> None:
    """Download the pictures of a set of the benchmark, if torchvision can, and tell which files are still missing.

    Example: [bold]prograd-fast data prepare oxford_pets --root DATA[/bold]

    The exit code is 0 if the set is complete, and 3 if something is missing.
    """
    from prograd_fast.data import BENCHMARKS
    from prograd_fast.data.benchmarks import download

    if name not in BENCHMARKS:
        raise ValueError(f"no set {name!r} of the benchmark: expected one of {', '.join(BENCHMARKS)}")
    try:
        download(name, root)
    except (RuntimeError, OSError) as error:  # no connection or none any more, a file that came damaged, a full disk
        raise ValueError(
            f"{name}: torchvision cannot download it: {error}; try again, or do by hand what `prograd-fast data check "
            f"{name} --root {root}` says"
        ) from error
    _check_benchmark(name, root)


def _check_root(root: Path) -> None:
    if not root.is_dir():
        raise ValueError(f"--root: {root} is no folder; expected the one that holds the folders of the sets")


def _check_benchmark(name: str, root: Path) -> None:
    """Say what a set of the benchmark holds, or, a line for each file, what is missing in it; exit code 3 for that."""
    from prograd_fast.data import BENCHMARKS
    from prograd_fast.data.benchmarks import missing_pictures

    _tell(BENCHMARKS[name].missing(root))
    pictures = open_pictures(name, root=root)
    lost = missing_pictures(pictures)
    more = [f"{len(lost) - _NAMED} more pictures are missing"] if len(lost) > _NAMED else []
    _tell([f"{file} is missing: the split names it" for file in lost[:_NAMED]] + more)
    _say_counts(pictures, BENCHMARKS[name].classes)


def _tell(missing: list[str]) -> None:
    """A line for each; exit code 3 if there is one."""
    for line in missing:
        say(line)
    if missing:
        raise typer.Exit(PROBLEMS)


def _say_counts(pictures: "PictureSet", published: int) -> None:
    counts = {part: int((pictures.split == part).sum()) for part in ("pool", "validation", "test")}
    classes = len(pictures.class_names)
    say(
        f"{pictures.name}: {classes} classes, {counts['pool']} pictures to learn from, {counts['validation']} for "
        f"validation, {counts['test']} for the test."
    )
    problems = [f"the published set has {published} classes"] if classes != published else []
    if not counts["test"]:
        problems.append("it has no pictures for the test")
    if counts["pool"]:
        learned = set(pictures.labels[pictures.split == "pool"].tolist())
        lacking = [name for label, name in enumerate(pictures.class_names) if label not in learned]
        problems += [f"class {name!r} has no picture to learn from" for name in lacking[:_NAMED]]
        if len(lacking) > _NAMED:
            problems.append(f"{len(lacking) - _NAMED} more classes have no picture to learn from")
    elif counts["validation"]:
        problems.append("it has no pictures to learn from")
    for problem in problems:
        say(f"Problem: {problem}.")
    if problems:
        raise typer.Exit(PROBLEMS)
    say("Nothing is missing.")
