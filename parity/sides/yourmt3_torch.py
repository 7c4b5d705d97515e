"""The PyTorch side of YourMT3+; yourmt3_jax.py is its twin."""

import os
from typing import Any

import numpy as np
import torch
from einops import rearrange

from mt3_common.audio.segments import Segment
from mt3_common.audio.yourmt3_frames import LOG_OFFSET, RANGE_OFFSET, FrontEnd
from mt3_common.checkpoint.yourmt3 import YourMT3Checkpoint, naming, read_yourmt3
from mt3_common.transcription.family import YourMT3Family
from mt3_common.yourmt3_config import without_dropout
from parity.sides.torch_side import Converter, ModuleSide, exact_mode, torch_dtype
from parity.trace.precision import shaken
from torch_mt3.checkpoint import array_of
from torch_mt3.losses import cross_entropy
from torch_mt3.optimizers import adamw_scale, adamw_slots
from torch_mt3.yourmt3.checkpoint import to_state_dict
from torch_mt3.yourmt3.kernels import CachedDecoder, encode, generator, pack
from torch_mt3.yourmt3.model import YourMT3
from torch_mt3.yourmt3.search import with_prefix


class Side(ModuleSide):
    """The PyTorch twin of YourMT3+ with a checkpoint's arrays, as YourMT3Side of side.py describes it.

    Attributes:
        config: the checkpoint's settings.
        family: its task and front end.
    """

    def __init__(self, checkpoint: YourMT3Checkpoint, device: str = "cpu"):
        settings = checkpoint.settings
        network = YourMT3(settings.network)
        network.load_state_dict(to_state_dict(checkpoint.arrays, settings.network), strict=True, assign=True)
        super().__init__(network.eval(), device)
        self.config = settings
        self.family = YourMT3Family(settings, FrontEnd(settings.front_end, checkpoint.front_end_arrays))

    @classmethod
    def load(cls, path: str | os.PathLike, device: str = "cpu", preset: str | None = None) -> "Side":
        """Load a checkpoint with the family's reader.

        Raises:
            ValueError: it cannot be read, or does not fit its settings or its task.
        """
        source = read_yourmt3(path, preset)
        with naming(path):
            return cls(source, device)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays as the framework holds them, under the published names and in the published shapes."""
        return {name: array_of(tensor) for name, tensor in self.model.state_dict().items()}

    def on_device(self, inputs: dict[str, np.ndarray], precision: str) -> tuple[torch.Tensor, ...]:
        """Return frames and tokens on the device."""
        frames, tokens = (torch.tensor(inputs[name], device=self.device) for name in ("frames", "decoder_input_tokens"))
        return frames.to(torch_dtype(precision)), tokens

    def front_end_frames(self, segments: np.ndarray) -> np.ndarray:
        """Return the frames of segments (b, n) in float64, by PyTorch's transform: (b, t, f)."""
        config, front_end = self.config.front_end, self.family.front_end
        with exact_mode("float64", self.device):
            samples = torch.tensor(segments, dtype=torch.float64, device=self.device)
            window = torch.tensor(front_end.window.astype(np.float64), device=self.device)
            spectrum = torch.stft(samples, config.n_fft, config.hop_length, window=window, return_complex=True).abs()
            values = rearrange(spectrum, "b f t -> b t f")
            if front_end.mel_matrix is None:
                values = values[..., 1:]
            else:
                values = values**2 @ torch.tensor(front_end.mel_matrix.astype(np.float64), device=self.device)
            values = torch.log(values + LOG_OFFSET)
            low, high = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
            return ((values - low) / (high - low + RANGE_OFFSET)).nan_to_num().cpu().numpy()

    def search_logits(self, inputs: dict[str, np.ndarray], precision: str) -> np.ndarray:
        """Return the logits that a search sees behind all tokens at once, by the plain network."""
        with exact_mode(precision, self.device), torch.no_grad():
            network: Any = self.cast(precision)
            frames, tokens = self.on_device(inputs, precision)
            encoded = network.encode(with_prefix(network, frames, self.family.task.prefix()))
            return Converter()(network.lm_head(network.decode(encoded, tokens)))

    def cached_logits(self, inputs: dict[str, np.ndarray], precision: str) -> np.ndarray:
        """Return the same logits as kernels.py computes them: packed, one token at a time from caches."""
        with exact_mode(precision, self.device), torch.inference_mode():
            network: Any = self.cast(precision)
            frames, tokens = self.on_device(inputs, precision)
            pack(network)
            decoder = CachedDecoder(network)
            cache = decoder.start(encode(network, frames, self.family.task.prefix()).flatten(0, -3))
            rows = tokens.reshape(-1, tokens.shape[-1])
            logits = []
            for position in range(rows.shape[1]):
                if position == cache.self_keys[0].shape[2]:
                    cache = cache.doubled()
                logits.append(decoder.step(cache, rows[:, position], position).cpu().numpy())
            return np.stack(logits, axis=1).reshape(*tokens.shape, -1)

    def generate(self, segments: list[np.ndarray], max_tokens: int | None = None) -> list[np.ndarray]:
        """Return the greedy ids of segments, (n,) or (channels, n), as transcription computes them in float32."""
        with exact_mode("float32", self.device):
            network: Any = self.cast("float32")
            limit = self.family.max_tokens if max_tokens is None else max_tokens
            generate = generator(network, limit, self.family.task.prefix(), batch_size=2)
            return list(generate(Segment(0, 0.0, frames, len(frames)) for frames in segments))

    def train_pass(self, inputs: dict[str, np.ndarray], precision: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the logits of training without dropout, and the statistics of batch norms after it by their names."""
        with exact_mode(precision, self.device), torch.no_grad():
            network = self._trainable(precision)
            logits = network(*self.on_device(inputs, precision), train=True)
            names = ("running_mean", "running_var", "num_batches_tracked")
            changed = {name: buffer.cpu().numpy() for name, buffer in network.named_buffers() if name.endswith(names)}
            return Converter()(logits), changed

    def gradients(
        self, inputs: dict[str, np.ndarray], precision: str, shake: bool = False
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the training loss without dropout (a 0-d array) and its gradients by published names.

        They are of `shaken` weights if asked.
        """
        with exact_mode(precision, self.device):
            network = self._trainable(precision)
            for parameter in network.parameters() if shake else ():
                parameter.data = torch.tensor(shaken(parameter.detach().cpu().numpy()), device=self.device)
            logits = network(*self.on_device(inputs, precision), train=True)
            targets = torch.tensor(inputs["decoder_target_tokens"], device=self.device).long()
            loss = cross_entropy(logits, targets, z_loss=0.0) / (targets > 0).sum()
            loss.backward()
            gradients = {}
            for name, parameter in network.named_parameters():
                # an expert that no token chose has none
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                gradients[name] = gradient.cpu().numpy()
            return loss.detach().cpu().numpy(), gradients

    def optimize(
        self, gradients: list[dict[str, np.ndarray]], precision: str, learning_rate: float = 1e-3
    ) -> dict[str, np.ndarray]:
        """Return the trained arrays after one step of AdamWScale (weight decay 0.01) per set of gradients."""
        after = {}
        with exact_mode(precision, self.device), torch.no_grad():
            dtype = torch_dtype(precision)
            for name, parameter in self.model.named_parameters():
                weight = parameter.to(dtype)
                slots = adamw_slots(weight)
                for named in gradients:
                    gradient = torch.tensor(named[name], device=self.device).to(dtype)
                    weight, slots = adamw_scale(weight, gradient, slots, learning_rate, weight_decay=0.01)
                after[name] = weight.cpu().numpy()
        return after

    def _trainable(self, precision: str) -> YourMT3:
        """Return a copy of the network without dropout."""
        network = YourMT3(without_dropout(self.config.network)).to(self.device, torch_dtype(precision))
        network.load_state_dict(self.cast(precision).state_dict(), strict=True)
        return network
