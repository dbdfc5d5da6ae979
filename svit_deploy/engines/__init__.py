"""Backends behind one contract (`base.Engine`); each imports its library when first used."""

from svit_deploy.engines.base import Engine, TensorSpec
from svit_deploy.engines.onnxruntime import OnnxRuntimeEngine, available_providers

__all__ = ["Engine", "OnnxRuntimeEngine", "TensorSpec", "available_providers"]
