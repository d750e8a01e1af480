"""The four tables of the field's papers: sets, numbers of shots, seeds, and who is tested on what."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prograd_fast.data import BENCHMARKS
from prograd_fast.data.published_draws import Draw, coop_draw
from prograd_fast.methods import Method
from prograd_fast.methods.templates import DATASETS
from prograd_fast.training import TrainOptions

SETS = tuple(name for name, one in BENCHMARKS.items() if one.coop_name in DATASETS)  # the eleven
DOMAINS = tuple(name for name in BENCHMARKS if name not in SETS)  # variants of ImageNet
SHOTS = (1, 2, 4, 8, 16)
SEEDS = (1, 2, 3)
SOURCE = "imagenet"  # learned where other sets are tested
# table -> the sets that it has a row for
TABLES = {
    "few-shot": SETS,
    "base-to-new": SETS,
    "cross-dataset": SETS,
    "domain": (SOURCE, *DOMAINS),
}
# random crops of size 0.08 to 1, and flips: configs/trainers of KaiyangZhou/CoOp, and of those that go on from there
AS_PUBLISHED = TrainOptions(views=0)


@dataclass(frozen=True)
class Reproduction:
    """A table of a method that is run again.

    Attributes:
        kind: the method; its settings are the published ones.
        table: one of `TABLES`.
        root: the folder that holds the sets.
        datasets: rows of the table, () for all. Where other sets are tested, `SOURCE` is learned whether it is a row
            or not.
        shots: pictures per class; () for those of the papers: all `SHOTS` for few-shot, else the method's
            `table_shots`, or 16.
        seeds: of the draws.
        draw: which pictures are learned from.
        options: how methods with steps are trained.

    Raises:
        ValueError: there is no such table, or a set is none of its rows; nothing to run, or something twice.
    """

    kind: type[Method]
    table: str
    root: Path
    datasets: Sequence[str] = ()
    shots: Sequence[int] = ()
    seeds: Sequence[int] = SEEDS
    draw: Draw = coop_draw
    options: TrainOptions = AS_PUBLISHED

    def __post_init__(self) -> None:
        if self.table not in TABLES:
            raise ValueError(f"no table {self.table!r}: expected one of {', '.join(TABLES)}")
        for name in self.datasets:
            if name not in TABLES[self.table]:
                raise ValueError(
                    f"{name!r} is no set of {self.table}: expected some of {', '.join(TABLES[self.table])}"
                )
        for what, values in (("sets", self.rows), ("shots", self.all_shots), ("seeds", self.seeds)):
            if not values or len(set(values)) < len(values):
                raise ValueError(
                    f"{what}: expected one or more, each once, got {', '.join(map(str, values)) or 'none'}"
                )

    @property
    def stem(self) -> str:
        """The beginning of its files' names, so that a folder can hold several tables of several methods."""
        return f"{self.kind.name}-{self.table}"

    @property
    def rows(self) -> tuple[str, ...]:
        """The sets that have a row, in the papers' order."""
        return tuple(self.datasets) or TABLES[self.table]

    @property
    def all_shots(self) -> tuple[int, ...]:
        """The numbers of shots."""
        if self.shots or (self.table == "few-shot" and self.table not in self.kind.table_shots):
            return tuple(self.shots) or SHOTS
        return (self.kind.table_shots.get(self.table, 16),)

    @property
    def transfers(self) -> bool:
        """Whether one set is learned, and others are tested."""
        return self.table in ("cross-dataset", "domain")

    @property
    def learned(self) -> tuple[str, ...]:
        """The sets that are learned."""
        return (SOURCE,) if self.transfers else self.rows

    @property
    def tested_elsewhere(self) -> tuple[str, ...]:
        """The sets that are tested and not learned."""
        return tuple(name for name in self.rows if name != SOURCE) if self.transfers else ()

    def check_sets(self) -> None:
        """ValueError where files of a set are missing."""
        needed = dict.fromkeys((*self.learned, *self.tested_elsewhere))
        lacking = [name for name in needed if BENCHMARKS[name].missing(self.root)]
        if lacking:
            raise ValueError(
                f"{', '.join(lacking)}: files are missing in {self.root}; `prograd-fast data check {lacking[0]} --root "
                f"{self.root}` names them. Or choose other sets with --datasets"
            )


def backbone_of(model: str) -> str:
    """The papers' name of a model: "RN50" of open_clip's RN50-quickgelu, "ViT-B/16" of ViT-B-16; others stay."""
    name = model.removesuffix("-quickgelu")
    return name.replace("ViT-B-", "ViT-B/") if name in ("ViT-B-16", "ViT-B-32") else name
