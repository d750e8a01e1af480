"""The commands `methods` and `doctor`, which only show what there is."""

from prograd_fast.terminal.output import Table, console


def methods() -> None:
    """List the methods with their settings and their presets (published settings)."""
    from prograd_fast.methods import METHODS

    table = Table("method")
    table.add_column("settings and defaults", max_width=48)
    table.add_column("presets", max_width=32)
    for method in METHODS:
        table.add_row(method.name, ", ".join(method.defaults()), ", ".join(method.presets) or "-")
    console.print(table)


def doctor() -> None:
    """Show versions, devices and backends, and how to install what is missing."""
    from prograd_fast.doctor import show_config

    print(show_config())
