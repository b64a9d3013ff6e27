"""Resources that run out, at length: `python -m tests.resources --help`."""
