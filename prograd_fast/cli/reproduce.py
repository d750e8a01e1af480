"""The command `reproduce`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from prograd_fast.cli.folders import cache_folder, check_writable
from prograd_fast.cli.models import check_text_tower, open_model
from prograd_fast.cli.options import (
    TESTS,
    TRAINING,
    Cache,
    Device,
    Graph,
    MaxMemory,
    NoCache,
    Precision,
    Pretrained,
    parse_numbers,
)
from prograd_fast.terminal import interrupts
from prograd_fast.terminal.output import Table, console, progress, say

if TYPE_CHECKING:
    from prograd_fast.clip import LoadedClip
    from prograd_fast.reproduce import Planned, Row

_METHOD = "Run this method. `prograd-fast methods` lists them."
_TABLE = "Run this table of the papers: few-shot, base-to-new, cross-dataset or domain."
_ROOT = "Find the sets in this folder; `prograd-fast data list --root DIR` shows which are complete."
_OUT = "Write runs, plan and tables to this folder."
_MODEL = "Use this model, such as RN50 or ViT-B-16."
_DATASETS = "Run these sets alone. Default: all of the table."
_SHOTS = "Learn from so many pictures per class. Default: the papers'."
_SEEDS = "Draw the pictures with these seeds. Default: 1,2,3."
_PLAN = "Write and show the plan (pictures, classes, words, settings), and run nothing."
_LISTS = "Learn from the pictures of published lists (split_fewshot/*.jsonl) instead of CoOp's draws."
_VIEWS = "Train on N stored random crops and flips of each picture in turn. Default: 0, a new one in each epoch."
_PLAIN = "Train on the pictures as they are, which looks at each once. It is not as published."


def reproduce(
    method: Annotated[str, Argument(metavar="METHOD", help=_METHOD)],
    table: Annotated[str, Option(metavar="NAME", help=_TABLE)],
    root: Annotated[Path, Option(metavar="DIR", help=_ROOT)],
    model: Annotated[str, Option(metavar="NAME", help=_MODEL)],
    out: Annotated[Path, Option(metavar="DIR", help=_OUT)],
    pretrained: Pretrained = None,
    plan: Annotated[bool, Option("--plan", help=_PLAN)] = False,
    datasets: Annotated[
        str, Option(metavar="NAME,...", help=_DATASETS, show_default=False, rich_help_panel=TESTS)
    ] = "",
    shots: Annotated[str, Option(metavar="K,...", help=_SHOTS, show_default=False, rich_help_panel=TESTS)] = "",
    seeds: Annotated[str, Option(metavar="S,...", help=_SEEDS, show_default=False, rich_help_panel=TESTS)] = "1,2,3",
    lists: Annotated[bool, Option("--lists", help=_LISTS, rich_help_panel=TESTS)] = False,
    views: Annotated[int, Option(min=0, metavar="N", help=_VIEWS, show_default=False, rich_help_panel=TRAINING)] = 0,
    plain: Annotated[bool, Option("--plain", help=_PLAIN, rich_help_panel=TRAINING)] = False,
    device: Device = None,
    cache: Cache = None,
    no_cache: NoCache = False,
    precision: Precision = "fp32",
    graph: Graph = None,
    max_memory: MaxMemory = None,
) -> None:
    """Run a table of the field's papers again, and print the published numbers beside ours.

    Example: [bold]prograd-fast reproduce prograd --table base-to-new --root DATA --model RN50 --pretrained openai --out
    again[/bold]

    The same command continues a table that was stopped. With more sets, shots or seeds, it runs what is new.
    """
    from prograd_fast import reproduce as room
    from prograd_fast.data.published_draws import coop_draw, listed_draw
    from prograd_fast.methods import method_kind
    from prograd_fast.reproduce.plan import HEADER, SHORT, plan_notes
    from prograd_fast.reproduce.protocol import backbone_of
    from prograd_fast.training import TrainOptions

    check_writable(out)
    feature_cache = cache_folder(cache, no_cache)
    if plain and views:
        raise ValueError("--plain and --views exclude each other")
    reproduction = room.Reproduction(
        method_kind(method),
        table,
        root,
        [name.strip() for name in datasets.split(",") if name.strip()],
        parse_numbers("--shots", shots) if shots else (),
        parse_numbers("--seeds", seeds),
        listed_draw if lists else coop_draw,
        TrainOptions(precision, views=None if plain else views, graph=graph),
    )
    planned = list(room.planned_runs(reproduction, backbone_of(model)))
    shown = Table(*SHORT)
    for one in planned:
        shown.add_row(*(cell for name, cell in zip(HEADER, one.cells(reproduction), strict=True) if name in SHORT))
    console.print(shown)
    weights = "" if pretrained is None else f" ({pretrained})"
    for line in plan_notes(reproduction, planned, f"{model}{weights}"):
        say(line)
    out.mkdir(parents=True, exist_ok=True)
    room.write_plan(reproduction, planned, out)
    if plan:
        say(f"Wrote {reproduction.stem}-plan.csv and {reproduction.stem}-pictures.csv in {out}.")
        return
    clip = open_model(model, pretrained, device, max_memory)
    _check_start(clip, planned)
    interrupts.hint = lambda: "; the same command goes on where it was stopped"
    with progress() as track:
        records = room.reproduce(reproduction, clip, out, track, feature_cache)
    rows = room.rows_of(reproduction, records)
    said = room.notes(reproduction, planned, records, rows, f"{model}{weights}")
    facts = {"name": clip.name, "pretrained": clip.pretrained, "digest": clip.digest, "transform": clip.transform}
    room.write_results(out, reproduction, records, rows, said, facts)
    _show(rows, said)
    say(f"Wrote {reproduction.stem}.md, .csv and .json in {out}.")


def _check_start(clip: "LoadedClip", planned: "list[Planned]") -> None:
    """Refuse what does not fit the model before a picture is looked at: once for each set, with its first shots."""
    from prograd_fast.training import check_start

    for one in {one.dataset: one for one in reversed(planned)}.values():
        check_text_tower(clip, [one.chosen.method])
        check_start(one.chosen.method, clip, one.class_names)


def _show(rows: "list[Row]", said: list[str]) -> None:
    """The table and the sentences under it."""
    from prograd_fast.reproduce.results import HEADER, table_cells

    cells, sources = table_cells(rows)
    shown = Table(HEADER[0])
    for header in HEADER[1:]:
        shown.add_column(header, justify="right")
    for row in cells:
        shown.add_row(*row)
    console.print(shown)
    for line in (*sources, *said):
        say(line)
