"""The command `prograd-fast`: one file per command or two, and what they share.

open_clip, scikit-learn and matplotlib take seconds to import. Only a command that needs them imports them, so that help
and mistakes are quick.
"""

from prograd_fast.cli.app import run

__all__ = ["run"]
