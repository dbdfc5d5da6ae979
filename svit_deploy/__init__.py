"""Export token-pruned Vision Transformers, prove parity at every gate, measure their latency."""

__version__ = "0.1.0"
