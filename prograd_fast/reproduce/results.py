"""The table at the end of a reproduction: our number, the published one, and the difference."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from prograd_fast.files.writing import replacing
from prograd_fast.methods import GradientMethod
from prograd_fast.reproduce.plan import Planned, plan_notes, seen_as, write_csv
from prograd_fast.reproduce.protocol import SOURCE, Reproduction
from prograd_fast.reproduce.published import Published, find_published
from prograd_fast.terminal.printable import printable
from prograd_fast.training import Record, write_json
from prograd_fast.training.evaluate import harmonic_mean

HEADER = ("set", "shots", "what", "ours", "sd", "runs", "published", "difference", "published with", "source")
_BASE_TO_NEW = {"base": "base", "new": "new"}


@dataclass(frozen=True)
class Row:
    """A number of ours beside a published one, if there is one.

    Attributes:
        dataset: the set, or "average of N".
        shots: pictures per class.
        metric: "accuracy", "base", "new" or "h".
        ours: in percent; the mean of the runs.
        sd: their standard deviation, None for one run and for what is computed from several means.
        runs: how many.
        published: the published number, or None.
    """

    dataset: str
    shots: int
    metric: str
    ours: float
    sd: float | None
    runs: int
    published: Published | None

    @property
    def difference(self) -> float | None:
        """Ours minus the published number, in points."""
        return None if self.published is None else self.ours - self.published.value


@dataclass(frozen=True)
class _Mean:
    """A mean over runs, or over means."""

    value: float
    sd: float | None
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "_Mean":
        return cls(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def rows_of(reproduction: Reproduction, records: Sequence[Record]) -> list[Row]:
    """The rows of the table. A number that several sources publish has a row for each.

    The harmonic mean is that of the mean base and the mean new accuracy. Averages are those of the sets' means; where
    other sets are tested, without the set that is learned.
    """
    rows: list[Row] = []
    for shots in reproduction.all_shots:
        means = _means(reproduction, [record for record in records if record["shots"] == shots])
        averaged = [name for name in means if not (reproduction.transfers and name == SOURCE)]
        if len(averaged) > 1:
            metrics = [metric for metric in means[averaged[0]] if all(metric in means[name] for name in averaged)]
            n = len(averaged) if not reproduction.transfers else f"{len(averaged)} targets"
            total = {
                metric: _Mean(fmean(means[name][metric].value for name in averaged), None, len(reproduction.seeds))
                for metric in metrics
            }
            means[f"average of {n}"] = _with_h({name: mean for name, mean in total.items() if name != "h"})
        for name, found in means.items():
            for metric, mean in found.items():
                published: list[Published | None] = [
                    *find_published(reproduction.kind.name, reproduction.table, name, shots, metric)
                ]
                rows += [Row(name, shots, metric, mean.value, mean.sd, mean.runs, one) for one in published or [None]]
    return rows


def _means(reproduction: Reproduction, records: Sequence[Record]) -> dict[str, dict[str, _Mean]]:
    """Set -> metric -> mean over the seeds, in percent; what a method cannot be tested on is left out."""
    means: dict[str, dict[str, _Mean]] = {}
    for name in reproduction.rows:
        learned = SOURCE if reproduction.transfers else name
        parts = _BASE_TO_NEW if reproduction.table == "base-to-new" else {"accuracy": name}
        if reproduction.table == "few-shot" or (reproduction.transfers and name == SOURCE):
            parts = {"accuracy": "all"}
        runs = [record["accuracy"] for record in records if record["dataset"] == learned]
        found = {
            metric: _Mean.of([100 * run[part] for run in runs])
            for metric, part in parts.items()
            if runs and all(part in run for run in runs)
        }
        if found:
            means[name] = _with_h(found)
    return means


def _with_h(means: dict[str, _Mean]) -> dict[str, _Mean]:
    if {"base", "new"} <= means.keys():
        base, new = means["base"], means["new"]
        means["h"] = _Mean(harmonic_mean(base.value, new.value), None, base.runs)
    return means


def notes(
    reproduction: Reproduction, plan: list[Planned], records: Sequence[Record], rows: Sequence[Row], model: str
) -> list[str]:
    """The sentences under the table."""
    kind, said = reproduction.kind, plan_notes(reproduction, plan, model)
    said.append(
        f"Differs from the authors' code: {reproduction.options.precision} instead of their fp16; the last, smaller "
        "batch of an epoch is learned from, where they drop it; test pictures that are learned from too are left out."
    )
    if kind.differs:
        said.append(kind.differs)
    if reproduction.options.views != 0 and (kind.crops is not None or issubclass(kind, GradientMethod)):
        said.append(f"Not as published: the method sees pictures as {seen_as(reproduction, kind)}.")
    said += _choices(records, kind.chooses)
    broken = [f"{one['dataset']}, {one['shots']} shots, seed {one['seed']}" for one in records if not _ended(one)]
    if broken:
        said.append(f"The loss was no longer finite, and the last good state was tested: {'; '.join(broken)}.")
    left_out = {name: n for record in records for name, n in record["left_out"].items()}
    if left_out:
        said.append(f"Left out of the tests: {', '.join(f'{n} of {name}' for name, n in left_out.items())}.")
    noted = {row.published.note for row in rows if row.published is not None} - {""}
    said += [f"Note of a published number: {note}." for note in sorted(noted)]
    return said


def _ended(record: Record) -> bool:
    return record.get("completed") is not False


def _choices(records: Sequence[Record], chooses: str) -> list[str]:
    """Say what was chosen on validation pictures, in each set."""
    if not chooses:
        return ["Nothing was chosen on validation pictures, and nothing ever on test pictures."]
    found: dict[str, list[str]] = {}
    for record in records:
        run = f"{record['dataset']}, {record['shots']} shots"
        if "chosen" in record:
            values = ", ".join(f"{name} {value:g}" for name, value in record["chosen"]["values"].items())
            run += f": {chooses} chosen on {record['chosen']['validation_pictures']} validation pictures"
            found.setdefault(run, []).append(f"{values} (seed {record['seed']})")
        else:
            found[f"{run}: no validation pictures"] = [f"{chooses} not chosen, the settings or fixed values stand"]
    return [f"{run}: {'; '.join(values)}." for run, values in found.items()]


def table_cells(rows: Sequence[Row]) -> tuple[list[list[str]], list[str]]:
    """The table as text, and the sources that its last column numbers."""
    sources = list(dict.fromkeys(row.published.source for row in rows if row.published is not None))
    cells = []
    for row in rows:
        one, difference = row.published, row.difference
        cells.append(
            [
                row.dataset,
                str(row.shots),
                row.metric,
                f"{row.ours:.2f}",
                "-" if row.sd is None else f"{row.sd:.2f}",
                str(row.runs),
                "-" if one is None else f"{one.value:.2f}",
                "-" if difference is None else f"{difference:+.2f}",
                "-" if one is None else one.backbone,
                "-" if one is None else f"[{sources.index(one.source) + 1}]",
            ]
        )
    return cells, [f"[{i}] {source}" for i, source in enumerate(sources, 1)]


def write_results(
    out: Path,
    reproduction: Reproduction,
    records: Sequence[Record],
    rows: Sequence[Row],
    said: list[str],
    model: Record,
) -> None:
    """Write `STEM.json` (records of all runs), `STEM.md` and `STEM.csv` (numbers un-rounded, whole sources)."""
    write_json(
        out / f"{reproduction.stem}.json",
        {"method": reproduction.kind.name, "table": reproduction.table, "model": model, "runs": list(records)},
    )
    cells, sources = table_cells(rows)
    lines = [list(HEADER), ["---"] * len(HEADER), *cells]
    text = "\n".join(
        f"| {' | '.join(printable(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )
    with replacing(out / f"{reproduction.stem}.md") as temporary:
        items = "\n".join(f"- {printable(line)}" for line in (*sources, *said))
        temporary.write_text(f"{text}\n\n{items}\n", encoding="utf-8")
    header = ("method", "table", *HEADER, "model", "note")
    write_csv(
        out / f"{reproduction.stem}.csv",
        [
            header,
            *(
                [reproduction.kind.name, reproduction.table, *_csv_cells(row), str(model["name"]), _note(row)]
                for row in rows
            ),
        ],
    )


def _csv_cells(row: Row) -> list[str]:
    one, difference = row.published, row.difference
    numbers = [row.ours, row.sd, row.runs, None if one is None else one.value, difference]
    return [
        row.dataset,
        str(row.shots),
        row.metric,
        *("" if number is None else repr(number) for number in numbers),
        "" if one is None else one.backbone,
        "" if one is None else one.source,
    ]


def _note(row: Row) -> str:
    return "" if row.published is None else row.published.note
