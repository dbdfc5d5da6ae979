"""The token-reduction methods, by the names of their families."""

from __future__ import annotations

from svit_deploy.config import ModelConfig
from svit_deploy.methods.deit import Deit
from svit_deploy.methods.dynamicvit import DynamicVit
from svit_deploy.methods.method import Method, Selected
from svit_deploy.methods.svit import Svit

__all__ = ["METHODS", "Method", "Selected", "method_of"]

METHODS: dict[str, Method] = {method.name: method for method in (Svit(), DynamicVit(), Deit())}


def method_of(config: ModelConfig) -> Method:
    return METHODS[config.family]
