"""What every exported graph must pass before it is written."""

from __future__ import annotations

import onnx

from svit_deploy.errors import ExportError
from svit_deploy.io.onnx_file import METADATA_PREFIX, custom_domains, random_operators

REPORT = "this is a bug, please report it with the command you ran"


def finish(model: onnx.ModelProto, metadata: dict[str, str], version: str) -> onnx.ModelProto:
    """Infers shapes, fills metadata_props and checks the graph.

    Raises:
        ExportError: the checker or strict shape inference objects, an operator draws random
            numbers, or an operator is not standard ONNX.
    """
    refuse_random(model)
    if domains := custom_domains(model):
        raise ExportError(f"the graph uses operators of {', '.join(domains)}", REPORT)
    try:
        model = onnx.shape_inference.infer_shapes(
            model, check_type=True, strict_mode=True, data_prop=True
        )
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ExportError(f"the exported graph is not valid ONNX ({reason})", REPORT) from error
    except ValueError as error:  # protobuf's 2 GiB limit
        raise ExportError(
            f"the graph cannot be serialised ({error})", "export a model of less than 2 GiB"
        ) from error
    model.producer_name, model.producer_version = "svit-deploy", version
    onnx.helper.set_model_props(
        model, {METADATA_PREFIX + key: value for key, value in sorted(metadata.items())}
    )
    return model


def refuse_random(model: onnx.ModelProto) -> None:
    """Raises ExportError when any operator draws random numbers."""
    if found := random_operators(model):
        raise ExportError(
            f"the graph draws random numbers in {', '.join(found[:3])}",
            "export with deterministic gates: no sampling may stay in a graph",
        )
