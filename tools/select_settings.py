"""Accuracy on validation pictures by learning rate and penalty, as `docs/settings.md` reports it.

    python -m tools.select_settings

The base classes, shots and draws of the demo (three partitions, three draws, up to 16 pictures per class), examined on
the validation pictures of the base classes. No test picture is looked at. A scan that was stopped goes on where it was.
"""

from statistics import fmean

from prograd_fast.methods import CoOp, KgCoOp, LinearProbe, Method, ProGradCoOp
from tools import REPOSITORY
from tools.study.work import Draw, Job, Runs

SHOTS, PARTITIONS, SEEDS, STEPS = 16, 3, 3, 100
RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
INVERSE_PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0)
DRAWS = [Draw("emoji", SHOTS, partition, seed, False) for partition in range(PARTITIONS) for seed in range(SEEDS)]
TUNED: tuple[tuple[type[Method], float | None], ...] = ((CoOp, 0.0), (ProGradCoOp, 1.0), (KgCoOp, None))


def main() -> None:
    """Prints two Markdown tables."""
    rates = {
        rate: [
            [Job(kind.name, lambda_, (("epochs", STEPS), ("lr", rate)), draw) for draw in DRAWS]
            for kind, lambda_ in TUNED
        ]
        for rate in RATES
    }
    probes = {c: [Job(LinearProbe.name, None, (("C", c),), draw) for draw in DRAWS] for c in INVERSE_PENALTIES}
    with Runs(REPOSITORY / "build" / "study") as runs:
        runs.look(["emoji"])
        runs.do([job for row in rates.values() for cell in row for job in cell], "learning rates")
        runs.do([job for cell in probes.values() for job in cell], "penalties")

    def cell(jobs: list[Job]) -> str:
        return f"{fmean(100 * runs.of(job)['accuracy']['validation'] for job in jobs):.1f}"

    print(f"| lr | {' | '.join(kind.title for kind, _ in TUNED)} |\n|---:|{'---:|' * len(TUNED)}")
    for rate, row in rates.items():
        print(f"| {rate} | {' | '.join(map(cell, row))} |")
    print("\n| C | linear probe |\n|---:|---:|")
    for c, jobs in probes.items():
        print(f"| {c} | {cell(jobs)} |")


if __name__ == "__main__":
    main()
