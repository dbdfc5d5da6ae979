"""A container that serves a bundle: no PyTorch, no root, with a health check."""

from __future__ import annotations

import shutil
from pathlib import Path
from string import Template

from svit_deploy import __version__
from svit_deploy.bundle import MANIFEST, Bundle
from svit_deploy.engines.providers import CPU
from svit_deploy.engines.runtimes import TENSORRT
from svit_deploy.engines.settings import EngineChoice
from svit_deploy.engines.tensorrt.sidecar import read_sidecar
from svit_deploy.inference.engine import choose
from svit_deploy.options import options_of
from svit_deploy.package.settings import PackageSettings

USER = 10001
PORT, GRPC_PORT = 8080, 8081
BUNDLE = "/bundle"

DOCKERFILE = Template("""\
# Build it in this folder: docker build --tag $name .
FROM python:3.12-slim AS build
# What to install; --build-arg SVIT_DEPLOY=... gives another one, such as the address of a wheel.
ARG SVIT_DEPLOY="svit-deploy[$extras]==$version"
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir "$${SVIT_DEPLOY}"$pins

FROM python:3.12-slim
COPY --from=build /venv /venv
COPY bundle $bundle
ENV PATH=/venv/bin:$$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER $user:$user
EXPOSE $port $grpc_port
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s CMD ["python", "-c", \\
    "from urllib.request import urlopen as o; o('http://127.0.0.1:$port/v2/health/ready')"]
ENTRYPOINT ["svit-deploy", "serve", "$name=$bundle", "--host", "0.0.0.0", \\
    "--port", "$port", "--grpc-port", "$grpc_port"$options]
""")


def write_docker(bundle: Bundle, name: str, settings: PackageSettings, folder: Path) -> None:
    """`Dockerfile`, `.dockerignore`, and `bundle/`, a copy of the bundle's own files."""
    copy_bundle(bundle, folder / "bundle")
    pins, (runtime, file) = "", choose(bundle, settings)
    if runtime is TENSORRT:
        pins = f' "tensorrt=={read_sidecar(file).tensorrt}.*"'
    options = "".join(f', "{word}"' for word in serve_options(settings))
    text = DOCKERFILE.substitute(
        name=name,
        extras=extras_of(bundle, settings),
        version=__version__,
        pins=pins,
        bundle=BUNDLE,
        user=USER,
        port=PORT,
        grpc_port=GRPC_PORT,
        options=options,
    )
    (folder / "Dockerfile").write_text(text, encoding="utf-8")
    (folder / ".dockerignore").write_text("*\n!bundle\n", encoding="utf-8")


def serve_options(settings: PackageSettings) -> list[str]:
    """What `serve` is told beside its bundle and ports."""
    words = ["--max-delay", f"{settings.max_delay:g}"]
    for name, declared in options_of(EngineChoice).items():
        value = getattr(settings, name)
        if value != declared.default():
            words += [declared.flag, str(value)]
    return words


def extras_of(bundle: Bundle, settings: PackageSettings) -> str:
    """What to install of this package."""
    runtime, _ = choose(bundle, settings)
    on_gpu = settings.provider not in (None, CPU)
    extras = {
        "tensorrt": "gpu,serve,tensorrt",
        "openvino": "openvino,serve",
        "onnxruntime": "gpu,serve" if on_gpu else "cpu,serve",
    }
    return extras[runtime.name]


def copy_bundle(bundle: Bundle, folder: Path) -> None:
    """The files that the manifest lists, and the manifest."""
    folder.mkdir()
    for name in (*bundle.manifest["files"], MANIFEST):
        shutil.copyfile(bundle.path / name, folder / name)
