"""YourMT3+ as one ONNX graph: built from the published arrays, run by ONNX Runtime."""
