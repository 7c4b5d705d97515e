"""Comparison of two networks of any maker: modules of Flax, Equinox, Haiku, PyTorch, functions of JAX, ONNX graphs."""
