"""The command `prograd-fast`, also as `python -m prograd_fast`."""

import sys

from prograd_fast import show_config


def main() -> None:
    """Run the command. Where only the core is installed, `doctor` still works, and all else tells what to install."""
    try:
        from prograd_fast import cli
    except ModuleNotFoundError as error:
        if sys.argv[1:] == ["doctor"]:
            print(show_config())
            return
        print(f'prograd-fast: {error.name} is not installed: pip install "prograd-fast[demo]"', file=sys.stderr)
        sys.exit(2)
    cli.main()


if __name__ == "__main__":
    main()
