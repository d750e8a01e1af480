"""What a person at a terminal sees and sends: printable text, tables, progress bars, streams and signals."""
