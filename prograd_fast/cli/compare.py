"""The command `compare`."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from prograd_fast.cli.folders import cache_folder, check_writable
from prograd_fast.cli.matching import check_match
from prograd_fast.cli.models import check_teacher_options, check_text_tower, open_model, open_teacher
from prograd_fast.cli.options import (
    TESTS,
    TRAINING,
    Cache,
    Data,
    Device,
    Graph,
    MaxMemory,
    Model,
    NoCache,
    Precision,
    Pretrained,
    Root,
    TeacherModel,
    TeacherPretrained,
    Views,
    parse_numbers,
)
from prograd_fast.cli.pictures import open_pictures, tell_contradictions
from prograd_fast.files.reading import read_json
from prograd_fast.terminal import interrupts
from prograd_fast.terminal.output import console, progress, say

if TYPE_CHECKING:
    from prograd_fast.clip import LoadedClip
    from prograd_fast.data import PictureSet
    from prograd_fast.methods import Method

_METHODS = "Compare these methods. `prograd-fast methods` lists them. Default: all."
_SHOTS = "Learn from so many pictures per class. Default: 1,2,4,8,16."
_SEEDS = "Repeat each run with so many random draws of the pictures. Default: 3."
_PARTITIONS = "Split the classes into base and new classes N times. Default: 0, which learns all classes."
_IMBALANCE = "Train on long-tailed data: the rarest class has X times fewer pictures than the most frequent one."
_ALSO = "Test on this set too, among its own classes: on all pictures of a folder without a split. Can be repeated."
_SETTINGS = 'Read settings of methods from this JSON file: {"prograd": {"lr": 0.1, "preset": NAME}, ...}.'


def compare(
    data: Data,
    out: Annotated[Path, Option(metavar="DIR", help="Write runs, tables and pictures to this folder.")],
    methods: Annotated[str, Option(metavar="NAME,...", help=_METHODS, show_default=False)] = "all",
    shots: Annotated[str, Option(metavar="K,...", help=_SHOTS, show_default=False)] = "1,2,4,8,16",
    seeds: Annotated[int, Option(min=1, metavar="N", help=_SEEDS, show_default=False)] = 3,
    model: Model = "emoji-lite",
    pretrained: Pretrained = None,
    root: Root = None,
    partitions: Annotated[
        int, Option(min=0, metavar="N", help=_PARTITIONS, show_default=False, rich_help_panel=TESTS)
    ] = 0,
    imbalance: Annotated[float | None, Option(min=1, metavar="X", help=_IMBALANCE, rich_help_panel=TESTS)] = None,
    also: Annotated[list[str] | None, Option(metavar="DATA", help=_ALSO, rich_help_panel=TESTS)] = None,
    settings: Annotated[Path | None, Option(metavar="FILE", help=_SETTINGS, rich_help_panel=TRAINING)] = None,
    teacher_model: TeacherModel = None,
    teacher_pretrained: TeacherPretrained = None,
    views: Views = None,
    device: Device = None,
    cache: Cache = None,
    no_cache: NoCache = False,
    precision: Precision = "fp32",
    graph: Graph = None,
    max_memory: MaxMemory = None,
) -> None:
    """Compare methods over numbers of shots and over seeds.

    Example: [bold]prograd-fast compare --data emoji --methods coop,prograd --shots 1,4,16 --seeds 5 --out grid[/bold]

    The same command continues a comparison that was stopped. With more methods, shots or seeds, it runs what is new.
    """
    from prograd_fast.methods import check_takes_teacher
    from prograd_fast.report import report_comparison
    from prograd_fast.training import Grid, TrainOptions, run_grid

    check_writable(out)
    check_teacher_options(teacher_model, teacher_pretrained, views)
    feature_cache = cache_folder(cache, no_cache)
    given = {} if settings is None else _read_settings(settings)
    chosen = _methods(methods, given)
    if teacher_model is not None:
        check_takes_teacher(*chosen)
    options = TrainOptions(precision, views=views, graph=graph)
    grid = Grid(chosen, parse_numbers("--shots", shots), seeds, partitions, imbalance, options)
    clip = open_model(model, pretrained, device, max_memory)  # before many pictures are read, if it cannot be loaded
    teacher = open_teacher(teacher_model, teacher_pretrained, device)
    pictures = open_pictures(data, root=root)
    others = [_whole(name, root, pictures) for name in also or []]
    named = given if methods == "all" else {method.name for method in chosen}
    grid = replace(grid, methods=_runnable(chosen, named, clip, [pictures, *others]))
    check_match(clip, [pictures, *others], grid.methods)
    interrupts.hint = lambda: "; the same command goes on where it was stopped"
    with progress() as track:
        results = run_grid(grid, clip, pictures, out, track, feature_cache, others, teacher)
    for one in (pictures, *others):
        tell_contradictions(one)
    report_comparison(results, out, console)


def _whole(name: str, root: Path | None, learned: "PictureSet") -> "PictureSet":
    """A set to test on with all its pictures, or with its own split if it shares pictures with the set to learn from.

    Of a folder of one class too, which is no test by itself: nothing can be mistaken there.
    """
    whole = open_pictures(name, root=root, whole=True)
    if whole.published:
        return whole
    known = set(learned.read_digests(unreadable=[])) - {None}
    with progress(passing=True) as track:
        shared = not known.isdisjoint(whole.read_digests(track("reading the pictures", len(whole)), []))
    return open_pictures(name) if shared or len(whole.class_names) < 2 else whole


def _methods(names: str, settings: dict[str, Any]) -> list["Method"]:
    """The methods of a list of names, each with its settings and preset."""
    from prograd_fast.methods import METHODS, method_named

    chosen = [method.name for method in METHODS] if names == "all" else [name.strip() for name in names.split(",")]
    for name in settings:
        if name not in chosen:
            raise ValueError(f"--settings has {name!r}, which is not among the methods {', '.join(chosen)}")
    return [
        method_named(name, {key: value for key, value in own.items() if key != "preset"}, own.get("preset"))
        for name, own in ((name, settings.get(name, {})) for name in chosen)
    ]


def _runnable(
    methods: Sequence["Method"], named: Collection[str], clip: "LoadedClip", sets: Sequence["PictureSet"]
) -> list["Method"]:
    """The methods that can start on this model, with the classes to learn and those of the other sets.

    Tells which others are left out, and why.

    Raises:
        ValueError: one of those that the user named cannot start, or none of all can.
    """
    from prograd_fast.training import check_start

    runnable, left_out = list["Method"](), dict[str, list[str]]()
    for method in methods:
        try:
            check_text_tower(clip, [method])
            for pictures in sets if method.names_new_classes else sets[:1]:
                check_start(method, clip, pictures.class_names)
            runnable.append(method)
        except ValueError as error:
            if method.name in named:
                raise ValueError(f"{method.name}: {error}") from error
            left_out.setdefault(str(error), []).append(method.name)
    if not runnable:
        raise ValueError(next(iter(left_out)))
    for reason, names in left_out.items():
        say(f"Left out {', '.join(names)}: {reason}")
    return runnable


def _read_settings(file: Path) -> dict[str, Any]:
    """Settings by method."""
    try:
        settings = read_json(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"--settings {file} cannot be read as JSON: {error}") from error
    if not isinstance(settings, dict) or not all(isinstance(own, dict) for own in settings.values()):
        raise ValueError(f'--settings {file}: expected {{"METHOD": {{"NAME": VALUE, ...}}, ...}}')
    return settings
