"""The process of the command `prograd-fast`, also as `python -m prograd_fast`."""

import sys

from prograd_fast.doctor import show_config
from prograd_fast.installation import to_install
from prograd_fast.terminal import interrupts, streams


def main() -> None:
    """Run the command and end the process with its exit code."""
    streams.prepare()
    code = _run()
    if code > 128:  # interrupted: threads that encode pictures are not waited for
        print(interrupts.line(), file=sys.stderr)
        interrupts.leave(code)
    try:
        sys.stdout.flush()
    except OSError as error:
        print(f"prograd-fast: {error}", file=sys.stderr)
        code = code or 2
    sys.exit(code)


def _run() -> int:
    """The exit code of the command. With the core alone installed, only `doctor` works."""
    try:
        from prograd_fast import cli
    except ModuleNotFoundError as error:
        if sys.argv[1:] == ["doctor"]:
            print(show_config())
            return 0
        print(f"prograd-fast: {error.name} is not installed: {to_install('cli')}", file=sys.stderr)
        return 2
    return cli.run(sys.argv[1:])


if __name__ == "__main__":
    main()
