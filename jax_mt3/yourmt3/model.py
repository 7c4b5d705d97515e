"""A YourMT3+ network: frames and tokens -> logits of the next token.

Source: docs/yourmt3.md lists what the released weights depend on.
"""

from flax import linen as nn

from jax_mt3.yourmt3.conformer import ConformerEncoder
from jax_mt3.yourmt3.layers import dense, embedding
from jax_mt3.yourmt3.perceiver import PerceiverEncoder
from jax_mt3.yourmt3.pre_decoders import pre_decoder
from jax_mt3.yourmt3.pre_encoders import pre_encoder
from jax_mt3.yourmt3.t5 import T5Decoder, T5Encoder
from mt3_common.yourmt3_config import YourMT3Config


class Head(nn.Module):
    """Logits of hidden states (…, d_model) -> (…, vocab_size)."""

    config: YourMT3Config

    def setup(self):
        self.lm_head = dense(self.config.t5_decoder.d_model, self.config.vocab_size, bias=False)

    def __call__(self, x):
        if self.config.scale_logits:
            x = x * self.config.t5_decoder.d_model**-0.5
        return self.lm_head(x)


class YourMT3(nn.Module):
    """Frames (b, t, f) and tokens (b, n), or (b, c, n) with channels -> logits (b, n, v), or (b, c, n, v)."""

    config: YourMT3Config

    def setup(self):
        if self.config.pre_encoder != "none":
            self.pre_encoder = [pre_encoder(self.config)]
        if self.config.encoder == "perceiver-tf":
            self.encoder = PerceiverEncoder(self.config.perceiver)
        elif self.config.encoder == "conformer":
            self.encoder = ConformerEncoder(self.config.conformer)
        else:
            self.encoder = T5Encoder(self.config.t5_encoder, self.config.num_positions)
        if self.config.pre_decoder != "none":
            self.pre_decoder = [pre_decoder(self.config)]
        self.embed_tokens = embedding(self.config.vocab_size, self.config.t5_decoder.d_model)
        self.decoder = T5Decoder(self.config.t5_decoder, self.config.num_positions)
        self.lm_head = Head(self.config)

    def encode(self, frames, train=False):
        """Return what the decoder sees: (b, t, d_model), or (b, c, t, d_model) with channels."""
        x = frames
        if self.config.pre_encoder != "none":
            x = self.pre_encoder[0](x, train)
        x = self.encoder(x, train)
        if self.config.pre_decoder != "none":
            x = self.pre_decoder[0](x)
        return x

    def decode(self, encoded, tokens, train=False):
        """Return the hidden states behind tokens (b, n) or (b, c, n), which begin with id 0."""
        return self.decoder(self.embed_tokens(tokens), encoded, train)

    def __call__(self, frames, tokens, train=False):
        hidden = self.decode(self.encode(frames, train), tokens, train)
        # once more than the head does, as published: searches call encode, decode and the head
        if self.config.scale_logits and self.config.scale_twice:
            hidden = hidden * self.config.t5_decoder.d_model**-0.5
        return self.lm_head(hidden)
