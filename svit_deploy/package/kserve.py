"""A manifest for KServe in a cluster: this package's server as a predictor of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from svit_deploy.bundle import Bundle
from svit_deploy.errors import UsageError
from svit_deploy.inference.engine import uses_gpu
from svit_deploy.package.docker import BUNDLE, GRPC_PORT, PORT, USER, serve_options
from svit_deploy.package.settings import PackageSettings

MOUNTED = "/mnt/models"
"""Where KServe puts what it gets from STORAGE_URI."""
MANIFEST = "inferenceservice.yaml"


def check_kserve(bundle: Bundle, settings: PackageSettings) -> None:
    """Raises UsageError without an image to run."""
    if settings.image is None:
        raise UsageError(
            "the manifest needs the container's image",
            "make one with --format docker, push it, and give its name with --image",
        )


def write_kserve(bundle: Bundle, name: str, settings: PackageSettings, folder: Path) -> None:
    """`inferenceservice.yaml`."""
    text = yaml.safe_dump(describe_service(bundle, name, settings), sort_keys=False)
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def describe_service(bundle: Bundle, name: str, settings: PackageSettings) -> dict[str, Any]:
    """An `InferenceService` of KServe's v1beta1."""
    place = BUNDLE if settings.storage is None else MOUNTED
    limits = {"nvidia.com/gpu": "1"} if uses_gpu(bundle, settings) else {}
    health = {"path": "/v2/health/ready", "port": PORT}
    container: dict[str, Any] = {
        "name": "kserve-container",
        "image": settings.image,
        "command": ["svit-deploy", "serve", f"{name}={place}"],
        "args": ["--host", "0.0.0.0", "--port", str(PORT), "--grpc-port", str(GRPC_PORT)],
        "ports": [{"containerPort": PORT, "name": "http1", "protocol": "TCP"}],
        "startupProbe": {"httpGet": dict(health), "periodSeconds": 2, "failureThreshold": 60},
        "readinessProbe": {"httpGet": dict(health), "periodSeconds": 5},
        "livenessProbe": {"httpGet": {**health, "path": "/v2/health/live"}, "periodSeconds": 10},
        "resources": {
            "requests": {"cpu": "1", "memory": "1Gi"},
            "limits": {"memory": "4Gi", **limits},
        },
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    container["volumeMounts"] = [{"name": "tmp", "mountPath": "/tmp"}]
    container["args"] += serve_options(settings)
    if settings.storage is not None:
        container["env"] = [{"name": "STORAGE_URI", "value": settings.storage}]
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": name.lower().replace("_", "-").replace(".", "-"),
            "annotations": {"svit-deploy/model-sha256": bundle.model_sha256},
        },
        "spec": {
            "predictor": {
                "terminationGracePeriodSeconds": 40,
                "containers": [container],
                "volumes": [{"name": "tmp", "emptyDir": {}}],
            }
        },
    }
