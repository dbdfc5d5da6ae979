"""Runs on an NVIDIA GPU, whatever computes them: memory, streams, times by events, CUDA graphs."""
