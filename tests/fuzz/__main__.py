"""`python -m tests.fuzz`: random cases for operators, files, pictures and options; exit code 1 if one goes wrong."""

import argparse
import json
import sys
from pathlib import Path

from tests.fuzz import driver
from tests.fuzz.registry import TARGETS, load_targets


def main() -> None:
    """Run all targets, some of them, or one case of one."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", help="names (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="decides all cases (default: 0)")
    parser.add_argument("--seconds", type=float, default=540.0, help="for all targets together (default: 540)")
    parser.add_argument("--cases", type=int, default=10_000, help="of each target, at most (default: 10000)")
    parser.add_argument("--case", type=int, help="run this one case of one target in this process")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--plan", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    load_targets()
    if given.worker is not None:
        driver.work(given.plan, given.seed, given.seconds, given.cases, given.worker)
    elif given.case is not None:
        driver.run_case(given.targets[0], given.seed, given.case)
        print("fine")
    else:
        results = driver.run(given.targets or sorted(TARGETS), given.seed, given.seconds, given.cases)
        sys.exit(driver.report(results))


if __name__ == "__main__":
    main()
