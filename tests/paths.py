"""Where the tests find things of this project."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
GOLDEN = REPOSITORY / "tests" / "golden"  # what the authors' code computed, golden/README.md
