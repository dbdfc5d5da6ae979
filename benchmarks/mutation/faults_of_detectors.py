"""Faults in adapters, in Mask R-CNN's heads, and at image sizes other than the typical one."""

from __future__ import annotations

import numpy as np
import onnx

from mutation.fault import Change, Fault
from mutation.faults_of_blocks import epsilon
from mutation.faults_of_methods import operator, times
from mutation.graph import Graph, Steps
from svit_deploy import names

FLOAT = onnx.TensorProto.FLOAT


def attribute(op: str, scope: str, name: str, value: object, number: int = 0) -> Change:
    return lambda g: g.set_attribute(g.node(op, scope, number), name, value)


def constant(op: str, scope: str, position: int, value: float, number: int = 0) -> Change:
    return lambda g: g.set_input(g.node(op, scope, number), position, value)


def weight(name: str, factor: float) -> Change:
    return lambda g: g.change_weight(name, lambda values: values * factor)


def rolled(*names_of: str) -> Change:
    """Weights whose first axis begins one place later."""

    def change(graph: Graph) -> None:
        for name in names_of:
            graph.change_weight(name, lambda values: np.roll(values, 1, axis=0))

    return change


def right_at_the_typical_size_only(value: str, factor: float) -> Change:
    """A value times a factor, except in images of the typical size."""

    def change(graph: Graph) -> None:
        def scaled(steps: Steps, right: str) -> str:
            size = steps.op("Shape", names.INPUT, start=2)
            typical = steps.op("Equal", size, steps.constant(list(graph.config.image_size)))
            same = steps.op("Cast", typical, to=onnx.TensorProto.INT32)
            same = steps.op("ReduceMin", same, keepdims=0)
            same = steps.op("Cast", same, to=onnx.TensorProto.BOOL)
            one, other = steps.number(1.0, value), steps.number(factor, value)
            return steps.op("Mul", right, steps.op("Where", same, one, other))

        graph.replace(value, scaled)

    return change


def positions_at_other_sizes(graph: Graph) -> None:
    """The interpolated positions, 10 % off at other sizes."""
    table = graph.producer(names.EMBEDDING).input[0]
    positions = next(name for name in graph.producer(table).input if "Transpose" not in name)
    right_at_the_typical_size_only(positions, 1.1)(graph)


def sampling_at_other_sizes(graph: Graph) -> None:
    """Where an injector samples, 5 % off at other sizes."""
    node = graph.node("Split", "injector_2", 2)
    right_at_the_typical_size_only(node.input[0], 1.05)(graph)


def anchors_at_other_sizes(graph: Graph) -> None:
    right_at_the_typical_size_only(graph.node("Gather", "rpn").input[0], 1.05)(graph)


def suppression(scope: str, threshold: float) -> Change:
    return constant("NonMaxSuppression", scope, 3, threshold)


def smallest_score(score: float) -> Change:
    def change(graph: Graph) -> None:
        graph.set_input(graph.node("Greater", "box_head"), 1, score)

    return change


def anchors_larger(graph: Graph) -> None:
    """The anchors of stride 8, 2 % larger."""
    for node in graph.nodes:
        if node.op_type == "Add" and node.name.startswith("rpn/"):
            values = graph.constant(node.input[1])
            if values is not None and values.shape == (3, 4) and 32 < values.max() < 64:
                graph.set_input(node, 1, values * 1.02)
                return
    raise LookupError("no anchors of stride 8")


def label_of_the_next_class(graph: Graph) -> None:
    graph.replace(
        "labels",
        lambda s, labels: s.op(
            "Min", s.op("Add", labels, s.constant(1)), s.constant(graph.config.num_classes - 1)
        ),
    )


def everything_in_the_first_image(graph: Graph) -> None:
    """Detections of a batch all told as those of its first image."""
    graph.replace("image_index", lambda s, index: s.op("Min", index, s.constant(0)))


def boxes_in_input_pixels(graph: Graph) -> None:
    """Boxes are not scaled back to the picture."""
    for node in graph.nodes:
        if node.op_type == "Div" and "scale_factors" in graph.producer_inputs(node.input[1]):
            graph.replace_input(node, 1, lambda s, scale: s.op("Div", scale, scale))
            return
    raise LookupError("no boxes are scaled")


RCNN, ADAPTER, BUDGET = "svit_mask_rcnn/dynamic", "svit_adapter/dynamic", "svit_adapter/budget"
DENSE, EVO = "vit_adapter_dense/dense", "evovit_adapter/static"
FAULTS = (
    Fault("epsilon of an injector's norm", epsilon("injector_1", 10), (DENSE,)),
    Fault(
        "an injector's gain 1 % off",
        weight("interactions.2.injector.attn.output_proj.gained.weight", 1.01),
        (ADAPTER, EVO),
    ),
    Fault(
        "sampled at corners",
        attribute("GridSample", "extractor_2", "align_corners", 1),
        (DENSE, ADAPTER),
    ),
    Fault(
        "nearest samples",
        attribute("GridSample", "injector_3", "mode", "nearest", 1),
        (EVO, BUDGET),
    ),
    Fault(
        "samples at the border",
        attribute("GridSample", "injector_1", "padding_mode", "border"),
        (DENSE,),
    ),
    Fault(
        "softmax over points left out", operator("Softmax", "extractor_1", "Sigmoid"), (ADAPTER,)
    ),
    Fault("offsets 1 % larger", times("Mul", "injector_2", 1, 1.01), (DENSE, EVO)),
    Fault("a level's map exchanged", rolled("spm.fc3.levelled.weight"), (BUDGET,)),
    Fault("batch norm 0.2 % off", weight("spm.conv3.0.normed.weight", 1.002), (DENSE,)),
    Fault(
        "GELU by tanh in an extractor",
        attribute("Gelu", "extractor_4/ffn", "approximate", "tanh"),
        (EVO, ADAPTER),
    ),
    Fault(
        "a depth-wise filter 1 % off",
        weight("interactions.1.extractor.ffn.dwconv.weight", 1.01),
        (DENSE,),
    ),
    Fault("an output norm of another scale", times("Mul", "features", 1, 1.01), (EVO, ADAPTER)),
    Fault("positions right at one size", positions_at_other_sizes, (ADAPTER, RCNN)),
    Fault("sampling right at one size", sampling_at_other_sizes, (EVO,)),
    Fault("anchors right at one size", anchors_at_other_sizes, (RCNN,)),
    Fault("proposals suppressed at 0.75", suppression("rpn", 0.75), (RCNN,)),
    Fault("detections suppressed at 0.55", suppression("box_head", 0.55), (RCNN,)),
    Fault("detections from a score of 0.06", smallest_score(0.06), (RCNN,)),
    Fault("anchors 2 % larger", anchors_larger, (RCNN,)),
    Fault("box weights 2 % off", weight("roi_head.bbox_head.fc_reg.scaled.weight", 1.02), (RCNN,)),
    Fault("proposals' weights 1 % off", weight("rpn_head.rpn_reg.weight", 1.01), (RCNN,)),
    Fault("pyramid added 1 % too little", times("Add", "fpn", 1, 0.99), (RCNN,)),
    Fault(
        "boxes cut half a pixel off",
        attribute("RoiAlign", "box_head", "coordinate_transformation_mode", "output_half_pixel"),
        (RCNN,),
    ),
    Fault("two samples per cell", attribute("RoiAlign", "mask_head", "sampling_ratio", 2), (RCNN,)),
    Fault("maps chosen from 64 pixels", constant("Div", "box_head", 1, 64.0), (RCNN,)),
    Fault("masks of the next class", rolled("roi_head.mask_head.per_class.weight"), (RCNN,)),
    Fault(
        "background first",
        rolled("roi_head.bbox_head.fc_cls.weight", "roi_head.bbox_head.fc_cls.bias"),
        (RCNN,),
    ),
    Fault("the next class told", label_of_the_next_class, (RCNN,)),
    Fault("all in the first image", everything_in_the_first_image, (RCNN,)),
    Fault("boxes not scaled back", boxes_in_input_pixels, (RCNN,)),
    Fault("mask logits 5 % larger", times("Sigmoid", "mask_head", 0, 1.05), (RCNN,)),
)
