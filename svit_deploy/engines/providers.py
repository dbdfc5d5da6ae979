"""ONNX Runtime's execution providers by name, and which package brings each."""

from __future__ import annotations

from svit_deploy.errors import UsageError

CPU = "cpu"
"""The provider that every ONNX Runtime has; where no engine runs, the default."""
PROVIDERS = {
    CPU: "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "dml": "DmlExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "qnn": "QNNExecutionProvider",
}
NVIDIA = (PROVIDERS["cuda"], PROVIDERS["tensorrt"])
"""Those that run on an NVIDIA GPU."""
EXACT = {"CUDAExecutionProvider": {"use_tf32": "0"}}
"""Options without which a provider rounds float32 products: it would flip decisions of gates."""
TF32_VARIABLE = "NVIDIA_TF32_OVERRIDE"
"""Set to 0, NVIDIA's libraries leave float32 as it is; TensorRT's provider has no option for it."""
_INSTALL = {
    "CUDAExecutionProvider": "pip install 'onnxruntime-gpu[cuda,cudnn]'",
    # The provider is linked to libnvinfer.so.10; `tensorrt` alone is a later one.
    "TensorrtExecutionProvider": "pip install 'onnxruntime-gpu[cuda,cudnn]' 'tensorrt-cu13<11'",
    "OpenVINOExecutionProvider": "pip install onnxruntime-openvino",
    "DmlExecutionProvider": "pip install onnxruntime-directml",
    "MIGraphXExecutionProvider": "pip install onnxruntime-migraphx",
    "QNNExecutionProvider": "pip install onnxruntime-qnn",
}


def full_provider_name(provider: str) -> str:
    """Turns `cuda` into `CUDAExecutionProvider`; full names pass.

    Raises:
        UsageError: neither.
    """
    if provider.lower() in PROVIDERS:
        return PROVIDERS[provider.lower()]
    if provider.endswith("ExecutionProvider"):
        return provider
    raise UsageError(
        f"provider {provider!r} is unknown",
        f"use one of {', '.join(PROVIDERS)}, or a full name such as CUDAExecutionProvider",
    )


def install_fix(provider: str) -> str:
    """What to do where a provider, by its full name, is missing or cannot start."""
    command = _INSTALL.get(provider, "pip install onnxruntime")
    return f"run: {command} (in place of another onnxruntime package), or use --provider cpu"
