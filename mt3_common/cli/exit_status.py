"""Exit statuses of all commands (docs/commands.md has the table).

`mt3 transcribe` (also `python -m {jax,torch,onnx}_mt3.infer`), `evaluate`, `export`, `serve` and `site`: SUCCESS,
SOME_FAILED, NOT_STARTED. `mt3 train` and `mt3 data shards`, too: SOME_FAILED from the first step or shard on.
Other `mt3 data`: SUCCESS; SOME_FAILED for any error after the arguments were read; NOT_STARTED for wrong arguments.
`mt3-parity` has verdicts instead: 0 same, 1 different, 2 refused, 3 bad input (parity/compare/results.py).
All of them: INTERRUPTED, and 128 + the number of SIGTERM or SIGHUP; `mt3 train`, which saves, has INTERRUPTED for them,
too, from its first step on.
"""

# everything was done
SUCCESS = 0
# the work was begun, and some of it failed
SOME_FAILED = 1
# nothing was begun: wrong arguments, no usable checkpoint or device; argparse's own status
NOT_STARTED = 2
# Ctrl-C: 128 + SIGINT, as shells have it
INTERRUPTED = 130
