"""The runs of a reproduction, those that are not done yet."""

from pathlib import Path

from prograd_fast.clip import LoadedClip
from prograd_fast.data import load_benchmark
from prograd_fast.reproduce.protocol import Reproduction, backbone_of
from prograd_fast.reproduce.settings import published_settings
from prograd_fast.training import OtherSet, Record, Track, other_sets
from prograd_fast.training.grid import Cell, run_cells
from prograd_fast.training.progress import Bar
from prograd_fast.training.protocol import published_plan

_LONG = ("steps", "terms")  # figures of each step stay in the files of the runs


def reproduce(
    reproduction: Reproduction, clip: LoadedClip, out: Path, track: Track, cache: Path | None = None
) -> list[Record]:
    """Run what is not done yet; each run has a file `out/runs/TABLE/SET/METHOD-Kshots-seedS.json`, as in `run_grid`.

    Args:
        reproduction: what is run.
        clip: the model.
        out: folder of the runs.
        track: opens progress bars.
        cache: folder of image features that runs share, or None.

    Returns:
        A record of each run, `run_record` with "dataset" and without figures of each step.

    Raises:
        ValueError, OSError: as `load_benchmark`, `published_plan` and `run_grid`.
    """
    elsewhere: list[OtherSet] = []
    if reproduction.transfers:
        elsewhere = other_sets([load_benchmark(name, reproduction.root) for name in reproduction.tested_elsewhere])
    records: list[Record] = []
    for name in reproduction.learned:
        pictures = load_benchmark(name, reproduction.root)

        def open_bar(label: str, total: int, name: str = name) -> Bar:
            return track(f"{name}: {label}", total)

        cells = []
        for shots in reproduction.all_shots:
            chosen = published_settings(reproduction.kind, reproduction.table, name, shots, backbone_of(clip.name))
            for seed in reproduction.seeds:
                plan = published_plan(pictures, shots, seed, reproduction.table == "base-to-new", reproduction.draw)
                cells.append(Cell(f"{reproduction.kind.name}-{shots}shots-seed{seed}", chosen.method, plan))
        found = run_cells(
            cells,
            clip,
            pictures,
            out / "runs" / reproduction.table / name,
            open_bar,
            cache,
            elsewhere,
            reproduction.options,
        )
        for record in found:
            records.append({"dataset": name} | {key: value for key, value in record.items() if key not in _LONG})
    return records
