"""The command's side of a terminal: printable text, tables, progress bars, streams and signals."""
