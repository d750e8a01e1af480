"""The places of this project that tests read."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
GOLDEN = REPOSITORY / "tests" / "golden"  # what the authors' code computed, golden/README.md
