"""One file a subcommand of `python -m parity`."""
