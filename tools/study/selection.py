"""Settings chosen by the accuracy on validation pictures of base classes: the same budget for every entry."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from tools.study.entries import Entry
from tools.study.work import Draw, Job, Runs

SHOTS = 16
PARTITIONS = range(100, 103)  # that the study does not use


@dataclass(frozen=True)
class Choice:
    """What an entry tried on a set, and what was chosen.

    Attributes:
        set: The pictures.
        entry: The method with its λ.
        tried: Settings and their mean validation accuracy in %, in the order of `Entry.candidates`.
    """

    set: str
    entry: Entry
    tried: tuple[tuple[dict[str, Any], float], ...]

    @property
    def chosen(self) -> dict[str, Any]:
        """The settings with the highest accuracy, of equals the first: that of the lowest rate."""
        return max(self.tried, key=lambda one: one[1])[0]


def draws(name: str) -> list[Draw]:
    """The pictures that settings are chosen by."""
    return [Draw(name, SHOTS, partition, tested=False) for partition in PARTITIONS]


def jobs(name: str, entries: Sequence[Entry]) -> list[Job]:
    """The runs that the choice takes; none for an entry with nothing to choose."""
    return [
        Job.of(entry, settings, draw)
        for entry in entries
        for settings in entry.candidates()
        for draw in draws(name)
        if len(entry.candidates()) > 1
    ]


def choose(runs: Runs, name: str, entries: Sequence[Entry]) -> list[Choice]:
    """The choices of all entries on a set; `jobs` are done."""

    def worth(entry: Entry, settings: dict[str, Any]) -> float:
        found = [runs.of(Job.of(entry, settings, draw))["accuracy"]["validation"] for draw in draws(name)]
        return 100 * fmean(found)

    chosen = []
    for entry in entries:
        candidates = entry.candidates()
        several = len(candidates) > 1
        tried = tuple((settings, worth(entry, settings) if several else float("nan")) for settings in candidates)
        chosen.append(Choice(name, entry, tried))
    return chosen


def page(choices: Sequence[Choice]) -> str:
    """All that was tried, in Markdown; the chosen settings in bold."""
    lines = [
        "# Settings that were tried",
        "",
        f"Mean accuracy in % on the validation pictures of base classes, {SHOTS} shots, {len(PARTITIONS)} partitions "
        "that the study does not use. In bold the settings that were chosen: the first of the best.",
    ]
    for name in dict.fromkeys(choice.set for choice in choices):
        lines += ["", f"## {name}", "", "| method | λ | settings: accuracy in % |", "| --- | --- | --- |"]
        for choice in choices:
            if choice.set == name and len(choice.tried) > 1:
                cells = [_cell(settings, worth, settings == choice.chosen) for settings, worth in choice.tried]
                lambda_ = "" if choice.entry.lambda_ is None else f"{choice.entry.lambda_:g}"
                lines.append(f"| {choice.entry.kind.title} | {lambda_} | {'; '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(settings: dict[str, Any], worth: float, chosen: bool) -> str:
    said = f"{', '.join(f'{name} {_value(value)}' for name, value in settings.items())}: {worth:.1f}"
    return f"**{said}**" if chosen else said


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
