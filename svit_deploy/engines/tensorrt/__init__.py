"""TensorRT and TensorRT-RTX: building engines from exported graphs, and running them."""
