"""Convert a checkpoint to a PyTorch file and prove it: python examples/convert_and_prove.py CHECKPOINT WEIGHTS.pth.

`mt3-parity convert` reads the file back and compares every array bit for bit. `diagnose` is the proof for a file that
somebody else converted: it runs both networks. Spoiling one weight shows that the proof can fail.
"""

import sys

import torch

from parity.__main__ import main

checkpoint, weights = sys.argv[1:]
assert main(["convert", checkpoint, weights]) == 0
assert main(["diagnose", weights, "--against", checkpoint]) == 0

spoiled = weights.replace(".pth", ".spoiled.pth")
arrays = torch.load(weights, weights_only=True)
name = "decoder.final_layer_norm.weight"
arrays[name] = arrays[name] * 1.01
torch.save(arrays, spoiled)
assert main(["diagnose", spoiled, "--against", checkpoint]) == 1
