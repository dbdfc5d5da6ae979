"""ONNX graphs, written and edited: builder, layers, row moves, token selection, checks."""
