"""The folder that an export writes: complete or absent, every file accounted for."""

from svit_deploy.bundle.bundle import (
    MODEL,
    REFERENCE,
    Bundle,
    check_output,
    open_bundle,
    write_bundle,
)
from svit_deploy.bundle.manifest import SCHEMA_VERSION, write_manifest
from svit_deploy.names import MANIFEST

__all__ = [
    "MANIFEST",
    "MODEL",
    "REFERENCE",
    "SCHEMA_VERSION",
    "Bundle",
    "check_output",
    "open_bundle",
    "write_bundle",
    "write_manifest",
]
