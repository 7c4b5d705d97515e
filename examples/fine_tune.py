"""Fine-tune the bundled model on a folder: python examples/fine_tune.py FOLDER RUN [STEPS].

FOLDER holds NAME.wav (or flac, mp3, ...) with NAME.mid beside it. The run folder's best/ and last/ are checkpoints that
`mt3 song.wav --checkpoint RUN/last` takes. The same command again goes on where the run ended.
"""

import json
import sys
from pathlib import Path

from mt3_common.cli.mt3 import main

folder, run, *steps = sys.argv[1:]
# The preset stops early by a validation set (--validation); without one, all steps are done.
settings = Path(f"{run}.json")
settings.write_text(json.dumps({"training": {"patience": 0, "batch_size": 4}}))
arguments = ["--warm-start", "small", "--preset", "finetune", "--config", str(settings), "--recordings", folder]
sys.exit(main(["train", run, *arguments, "--max-steps", *(steps or ["1000"])]))
