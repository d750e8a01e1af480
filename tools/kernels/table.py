"""Tables of compiled GPU kernels in Markdown, for the gates beside this file.

    python tools/kernels/table.py OUTPUT.md TITLE=ROWS.json ...

Each ROWS.json is what a gate wrote with --json: a list of objects with the same keys, which become the columns.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LABEL = "Static, from SASS; nothing here was run on a GPU."


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """One table; a key of the first row is a column."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([_cell(row[column]) for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value).replace("|", "\\|")


def write(output: Path, tables: dict[str, Sequence[dict[str, Any]]]) -> None:
    """A page with one section for each table."""
    sections = [f"## {title}\n\n{LABEL}\n\n{markdown(rows)}\n" for title, rows in tables.items()]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("# GPU kernels, compiled\n\n" + "\n".join(sections))


def main() -> None:
    """Join the rows of several gates in one page."""
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    pairs = (argument.split("=", 1) for argument in sys.argv[2:])
    write(Path(sys.argv[1]), {title: json.loads(Path(rows).read_text()) for title, rows in pairs})


if __name__ == "__main__":
    main()
