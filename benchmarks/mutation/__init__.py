"""Faults put into exported graphs on purpose, and what `verify` says of them.

`python benchmarks/mutants.py` runs them; docs/verify.md tells what came of it.
"""
