"""`python -m tools.site`: builds the site, and ends with an error where a link or a name leads nowhere."""

import argparse
import sys
from pathlib import Path

from tools.site.build import build


def main() -> int:
    """Build, and say which page to open."""
    parser = argparse.ArgumentParser(prog="python -m tools.site", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/docs"), help="the folder of the site")
    parser.add_argument("--source", type=Path, default=Path("build/site"), help="the folder of what it is built from")
    arguments = parser.parse_args()
    code = build(arguments.source, arguments.out)
    if code == 0:
        print(f"Open {arguments.out / 'index.html'}")
    return code


if __name__ == "__main__":
    sys.exit(main())
