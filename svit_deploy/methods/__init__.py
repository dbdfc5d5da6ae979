"""The token-reduction methods, by the names of their families."""

from __future__ import annotations

from svit_deploy.config import ModelConfig
from svit_deploy.methods.adapter import SvitAdapter, VitAdapter
from svit_deploy.methods.ats import Ats
from svit_deploy.methods.deit import Deit
from svit_deploy.methods.dynamicvit import DynamicVit
from svit_deploy.methods.evit import Evit
from svit_deploy.methods.evovit import EvoVit
from svit_deploy.methods.mergence import Mergence
from svit_deploy.methods.method import Method, Selected
from svit_deploy.methods.stvit import Stvit
from svit_deploy.methods.stvitr import StvitR
from svit_deploy.methods.svit import Svit
from svit_deploy.methods.swin import Swin
from svit_deploy.methods.tome import Tome

__all__ = ["METHODS", "Method", "Selected", "method_of"]

# Those with keys of their own are looked for in this order, DeiT's being a part of others'.
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Svit(),
        DynamicVit(),
        EvoVit(),
        StvitR(),
        Swin(),
        Stvit(),
        Deit(),
        Evit(),
        Ats(),
        Tome(),
        Mergence(),
        SvitAdapter(),
        VitAdapter(),
    )
}


def method_of(config: ModelConfig) -> Method:
    return METHODS[config.family]
