"""Export token-pruned Vision Transformers, prove parity at every gate, measure their latency.

The command line's verbs are functions in `svit_deploy.api`.
"""

__version__ = "0.2.0"
