"""ONNX Runtime's execution providers by name, and which package brings each."""

from __future__ import annotations

from svit_deploy.errors import UsageError

CPU = "cpu"
"""The provider that every ONNX Runtime has; where no engine runs, the default."""
CUDA = "CUDAExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"
RTX_PROVIDER = "NvTensorRTRTXExecutionProvider"
PROVIDERS = {
    CPU: "CPUExecutionProvider",
    "cuda": CUDA,
    "tensorrt": TENSORRT_PROVIDER,
    "nv-tensorrt-rtx": RTX_PROVIDER,
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "dml": "DmlExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "qnn": "QNNExecutionProvider",
}
NVIDIA = (CUDA, TENSORRT_PROVIDER, RTX_PROVIDER)
"""Those that run on an NVIDIA GPU."""
BUILD_ENGINES = (TENSORRT_PROVIDER, RTX_PROVIDER)
"""Those of them that build an engine of what they take."""
TF32_VARIABLE = "NVIDIA_TF32_OVERRIDE"
"""Set to 0, NVIDIA's libraries leave float32 as it is; TensorRT's providers have no option for it.

TF32 rounds factors to ten bits: decisions of gates would flip.
"""
_INSTALL = {
    CUDA: "pip install 'onnxruntime-gpu[cuda,cudnn]'",
    # The provider is linked to libnvinfer.so.10; `tensorrt` alone is a later one.
    TENSORRT_PROVIDER: "pip install 'onnxruntime-gpu[cuda,cudnn]' 'tensorrt-cu13<11'",
    RTX_PROVIDER: "pip install onnxruntime-gpu onnxruntime-ep-nv-tensorrt-rtx",
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
