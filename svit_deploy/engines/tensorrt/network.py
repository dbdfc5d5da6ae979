"""From an ONNX file to a TensorRT network and the configuration to build it with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from svit_deploy.engines.tensorrt.channel import Channel, make_monitor
from svit_deploy.engines.tensorrt.settings import BuildSettings
from svit_deploy.errors import CapabilityError, ExportError, UsageError
from svit_deploy.machine.tensorrt import Library, one_line
from svit_deploy.names import INPUT

PARSED = 0.05


def parse_network(
    library: Library, builder: Any, onnx: Path, channel: Channel, logger: Any
) -> tuple[Any, Any]:
    """The network of an ONNX file, strongly typed: precision is what the graph says.

    Returns:
        The network and its parser, which owns the weights' memory until the engine is built.

    Raises:
        ExportError: TensorRT does not take the graph; with the first node it stumbles over.
    """
    trt = library.trt
    network = builder.create_network(library.bit("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        raise ExportError(
            f"{library.name} cannot read {onnx.name}: {_parser_error(parser, channel)}",
            "export the model for this target, svit-deploy export CHECKPOINT --target "
            f"{library.target}, or with --tokens budget, which needs the plainest operators",
        )
    _allow_decomposition(library, network)
    return network, parser


def _parser_error(parser: Any, channel: Channel) -> str:
    """The first error with its node; those that follow are often its consequences."""
    if not parser.num_errors:
        return one_line(channel.errors[0]) if channel.errors else "it gives no reason"
    error = parser.get_error(0)
    what = one_line(error.desc())
    operator = getattr(error, "node_operator", str)()
    return f"node {error.node_name()!r} ({operator}): {what}" if operator else what


def _allow_decomposition(library: Library, network: Any) -> None:
    """Lets the ONNX operator Attention become several kernels where no fused one exists.

    By default the build fails there.
    """
    kind = library.member("LayerType", "ATTENTION_INPUT")
    if kind is None:
        return
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        if layer.type == kind:
            layer.__class__ = library.trt.IAttentionInputLayer
            layer.attention.decomposable = True


def configure(
    library: Library, builder: Any, network: Any, settings: BuildSettings, channel: Channel
) -> Any:
    """The builder's configuration.

    Raises:
        UsageError: a profile does not fit the graph's input.
    """
    trt, config = library.trt, builder.create_builder_config()
    tf32 = library.member("BuilderFlag", "TF32")
    if tf32 is not None:
        (config.set_flag if settings.tf32 else config.clear_flag)(tf32)
    if (flag := user_allocation(library, settings)) is not None:
        config.set_flag(flag)
    # The inspector can then tell fused attention from other kernels.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if settings.optimization_level is not None:
        config.builder_optimization_level = settings.optimization_level
    if settings.workspace_bytes:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    if hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = make_monitor(trt, channel, PARSED)
    _check_input(network, settings)
    for profile in settings.profiles:
        made = builder.create_optimization_profile()
        made.set_shape(INPUT, profile.min, profile.opt, profile.max)
        if config.add_optimization_profile(made) < 0:
            raise UsageError(f"{library.name} refuses the profile {profile}", "give other shapes")
    return config


def user_allocation(library: Library, settings: BuildSettings) -> Any | None:
    """The flag by which an engine never allocates while it runs, so that it can be captured.

    Where image sizes range, the plan of its memory is then for all bounds at once: TensorRT-RTX 1.7
    asks for 116 GB for a detector of images up to 256x256, which takes 1.5 GB without the flag.
    """
    fixed = all(profile.min[2:] == profile.max[2:] for profile in settings.profiles)
    if settings.tokens == "dynamic" or not fixed:
        return None
    return library.member("BuilderFlag", "REQUIRE_USER_ALLOCATION")


def _check_input(network: Any, settings: BuildSettings) -> None:
    """Raises UsageError unless the one input is the images' and every profile fits it."""
    inputs = [network.get_input(number) for number in range(network.num_inputs)]
    names = ", ".join(repr(tensor.name) for tensor in inputs)
    if [tensor.name for tensor in inputs] != [INPUT]:
        raise UsageError(
            f"the graph's inputs are {names}, an engine is built for {INPUT!r} alone",
            "export the model with svit-deploy",
        )
    wanted = tuple(inputs[0].shape)
    for profile in settings.profiles:
        for shape in (profile.min, profile.opt, profile.max):
            if len(wanted) != len(shape) or any(
                size not in (-1, given) for size, given in zip(wanted, shape, strict=True)
            ):
                free = "x".join("N" if size == -1 else str(size) for size in wanted)
                raise UsageError(
                    f"the profile {profile} does not fit the graph's input {INPUT!r} {free}",
                    "give shapes of that size",
                )


def load_plugins(library: Library, builder: Any, path: Path, channel: Channel) -> None:
    """Makes the plugins of a library known to the builder.

    Raises:
        CapabilityError: it cannot be loaded or brings no plugin.
    """
    registry = builder.get_plugin_registry()
    known = len(registry.all_creators)
    channel.errors.clear()
    handle = registry.load_library(str(path))
    if handle is None or len(registry.all_creators) == known:
        reason = one_line(channel.errors[0]) if channel.errors else "it registers no plugin"
        raise CapabilityError(
            f"{library.name} cannot use the plugin library {path.name}: {reason}",
            "build it for this TensorRT: svit-deploy plugins build --tensorrt-include DIR",
        )
