"""Detection models as ONNX graphs, written operator by operator like those of `export`."""
