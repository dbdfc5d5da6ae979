"""Bundles behind the Open Inference Protocol, on KServe's Python model server."""
