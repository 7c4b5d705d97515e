"""MT3 as one ONNX graph: built from a checkpoint's arrays, run by ONNX Runtime, without JAX and without PyTorch."""
