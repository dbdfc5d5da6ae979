"""Latency as a function of content: interleaved, paired, on distinct images."""
