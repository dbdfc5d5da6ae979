"""Mask R-CNN around a backbone as one ONNX graph, with mmdet's semantics.

Detections of all images of a batch leave together; `image_index` says which image each is of.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from svit_deploy.backbones.adapter.sizes import STRIDES, feature_name
from svit_deploy.backbones.tokens import GraphTokens
from svit_deploy.backbones.writer import GraphWriter
from svit_deploy.graph.builder import FLOAT, INT64
from svit_deploy.graph.maps import Dim, MapSize, conv, map_op, map_size, product, quotient
from svit_deploy.tasks.detect.boxes import (
    NEVER,
    anchors,
    by_group,
    column,
    decode,
    least,
    number,
    roi_align,
    sides,
    true_rows,
)
from svit_deploy.tasks.detect.detections import BOXES, IMAGE_INDEX, LABELS, MASKS, SCORES
from svit_deploy.tasks.detect.keys import BOX_SIDE, MASK_SIDE

IMAGE_SIZES, SCALE_FACTORS = "image_sizes", "scale_factors"
PROPOSALS, PROPOSAL_IMAGE = "proposals", "proposal_image"
BOX_STDS = (0.1, 0.1, 0.2, 0.2)
RPN_STRIDES = (*STRIDES, 64)


def fpn_name(stride: int) -> str:
    """The graph's value `[B, F, H / stride, W / stride]`, which the heads cut from."""
    return f"fpn_{stride}"


def rpn_scores_name(stride: int) -> str:
    """The graph's value `[B, anchors]`: logits of one map's anchors."""
    return f"rpn_scores_{stride}"


def rpn_deltas_name(stride: int) -> str:
    """The graph's value `[B, anchors, 4]`: how the box differs from each anchor."""
    return f"rpn_deltas_{stride}"


def cut_names() -> list[str]:
    """Values, all float32, between what has the same shapes for all images and what has not."""
    return [
        *(fpn_name(stride) for stride in STRIDES),
        *(name(stride) for stride in RPN_STRIDES for name in (rpn_scores_name, rpn_deltas_name)),
    ]


class MaskRcnnGraph:
    """Writes a feature pyramid and Mask R-CNN's heads behind a backbone."""

    def __init__(self, writer: GraphWriter) -> None:
        self.writer, self.graph, self.layers = writer, writer.graph, writer.layers
        self.config, self.numbers = writer.config, writer.config.task

    def write(self) -> GraphTokens:
        """`images`, `image_sizes` and `scale_factors` -> detections; returns the tokens.

        `image_sizes [B, 2]` are height and width inside the padding, `scale_factors [B, 4]` input
        pixels per pixel of the original picture, which boxes are given in.
        """
        graph, writer = self.graph, self.writer
        images = writer.image_input()
        sizes = graph.input(IMAGE_SIZES, FLOAT, (writer.batch, 2))
        scale = graph.input(SCALE_FACTORS, FLOAT, (writer.batch, 4))
        features, tokens = writer.run(images)
        features = [
            graph.rename(feature, feature_name(stride))
            for stride, feature in zip(STRIDES, features, strict=True)
        ]
        # width, height, width, height
        limit = graph.op("Gather", sizes, graph.constant([1, 0, 1, 0]), axis=1)
        with graph.scope("fpn"):
            pyramid = self.fpn(features)
        maps = [graph.to_float32(feature) for feature in pyramid[:4]]
        with graph.scope("rpn"):
            boxes, image = self.rpn(pyramid, self.pyramid_sizes(maps), limit)
        boxes, image = graph.rename(boxes, PROPOSALS), graph.rename(image, PROPOSAL_IMAGE)
        with graph.scope("box_head"):
            found = self.box_head(maps, boxes, image, limit, scale)
        with graph.scope("mask_head"):
            boxes, _, labels, image = found
            inside = graph.op("Mul", boxes, graph.op("Gather", scale, image))
            masks = self.mask_head(maps, inside, labels, image)
        for value, name, dtype, shape in (
            (found[0], BOXES, FLOAT, (4,)),
            (found[1], SCORES, FLOAT, ()),
            (found[2], LABELS, INT64, ()),
            (masks, MASKS, FLOAT, (2 * MASK_SIDE, 2 * MASK_SIDE)),
            (found[3], IMAGE_INDEX, INT64, ()),
        ):
            graph.output(graph.rename(value, name), dtype, ("detections", *shape))
        for stride, feature in zip(STRIDES, maps, strict=True):
            graph.rename(feature, fpn_name(stride))
        return tokens

    def fpn(self, features: Sequence[str]) -> list[str]:
        """Feature pyramid network: five maps of strides 4 to 64."""
        graph = self.graph
        maps = [self.named_conv(f, f"neck.lateral_convs.{i}.conv") for i, f in enumerate(features)]
        for i in (2, 1, 0):
            doubled = graph.op(
                "Resize",
                maps[i + 1],
                "",
                graph.constant([1, 1, 2, 2], np.float32),
                mode="nearest",
                coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            )
            maps[i] = graph.op("Add", maps[i], doubled)
        maps = [self.named_conv(m, f"neck.fpn_convs.{i}.conv") for i, m in enumerate(maps)]
        coarsest = map_op(self.layers, "MaxPool", maps[-1], {}, kernel_shape=(1, 1), strides=(2, 2))
        return [*maps, coarsest]

    def pyramid_sizes(self, maps: Sequence[str]) -> list[MapSize]:
        """Sizes of the pyramid's maps, finest first; free ones are read off the four `maps`."""
        graph, (rows, columns) = self.graph, self.config.image_size
        sizes = [
            map_size(graph, rows // stride, columns // stride)
            if self.writer.sizes.fixed
            else map_size(graph, graph.shape(feature, 2), graph.shape(feature, 3))
            for stride, feature in zip(STRIDES, maps, strict=True)
        ]

        def half(side: Dim) -> Dim:  # rounded up
            return quotient(
                graph,
                side + 1 if isinstance(side, int) else graph.op("Add", side, graph.vector(1)),
                2,
            )

        return [*sizes, map_size(graph, half(sizes[-1].rows), half(sizes[-1].columns))]

    def rpn(self, pyramid: Sequence[str], sizes: Sequence[MapSize], limit: str) -> tuple[str, str]:
        """Region proposal network: boxes `[R, 4]` and the image that each is in `[R]`."""
        graph, config = self.graph, self.numbers
        limit = graph.op("Unsqueeze", limit, graph.constant([1]))  # [B, 1, 4]
        scores, boxes, levels = [], [], []
        for level, (feature, size) in enumerate(zip(pyramid, sizes, strict=True)):
            stride = RPN_STRIDES[level]
            hidden = graph.to_float32(
                graph.op("Relu", self.named_conv(feature, "rpn_head.rpn_conv"))
            )
            score = graph.op(
                "Squeeze", self.anchor_values(hidden, "rpn_head.rpn_cls", 1), graph.constant([2])
            )
            score = graph.rename(score, rpn_scores_name(stride))
            delta = self.anchor_values(hidden, "rpn_head.rpn_reg", 4)
            delta = graph.rename(delta, rpn_deltas_name(stride))
            count = least(graph, product(graph, size.cells, 3), config.rpn_candidates)
            best, index = graph.ops("TopK", score, graph.vector(count), outputs=2, axis=1)
            places = graph.op("Unsqueeze", index, graph.constant([2]))
            delta = graph.op("GatherND", delta, places, batch_dims=1)
            anchor = graph.op("Gather", anchors(graph, size, stride), index)
            scores.append(graph.op("Sigmoid", best))
            boxes.append(decode(graph, anchor, delta, limit))
            levels.append(graph.op("Expand", graph.constant(level), graph.vector(count)))
        score, box = (graph.op("Concat", *parts, axis=1) for parts in (scores, boxes))
        level_of = graph.op("Concat", *levels, axis=0)
        return self.suppress_proposals(box, self.sound(box, score), level_of)

    def sound(self, boxes: str, scores: str) -> str:
        """The scores `[B, n]`, but `NEVER` of boxes `[B, n, 4]` without area."""
        graph = self.graph
        area = graph.op("ReduceMin", sides(graph, boxes), graph.constant([2]), keepdims=0)
        sound = graph.op("Greater", area, number(graph, 0))
        return graph.op("Where", sound, scores, number(graph, NEVER))

    def anchor_values(self, hidden: str, name: str, width: int) -> str:
        """A 1x1 convolution's values `[B, cells * anchors, width]`, the anchor counting fastest.

        In float32 from float32, as are all last layers.
        """
        graph, layers = self.graph, self.layers
        weights = (layers.weight(f"{name}.{part}") for part in ("weight", "bias"))
        values = graph.op("Conv", hidden, *weights, kernel_shape=(1, 1))
        return graph.reshape(graph.op("Transpose", values, perm=(0, 2, 3, 1)), 0, -1, width)

    def suppress_proposals(self, boxes: str, scores: str, levels: str) -> tuple[str, str]:
        """The best boxes of each image after suppression inside each level.

        Args:
            boxes, scores, levels: `[B, n, 4]`, `[B, n]`, `[n]`.
        """
        graph, config = self.graph, self.numbers
        chosen = graph.op(
            "NonMaxSuppression",
            boxes,
            by_group(graph, levels, graph.constant(np.arange(5)), scores),
            graph.constant([config.rpn_candidates]),
            graph.constant([config.rpn_iou], np.float32),
            graph.constant([NEVER / 2], np.float32),
        )  # [M, 3]: image, level, box
        places = graph.op("Gather", chosen, graph.constant([0, 2]), axis=1)
        nothing = graph.op("Expand", number(graph, NEVER), graph.op("Shape", scores))
        kept = graph.op("ScatterND", nothing, places, graph.op("GatherND", scores, places))
        count = least(graph, graph.shape(kept, 1), config.rpn_proposals)
        best, index = graph.ops("TopK", kept, graph.vector(count), outputs=2, axis=1)
        rows = true_rows(graph, graph.op("Greater", best, number(graph, NEVER / 2)))
        box = graph.op("Unsqueeze", graph.op("GatherND", index, rows), graph.constant([1]))
        image = column(graph, rows, 0)
        first = graph.op("Unsqueeze", image, graph.constant([1]))
        return graph.op("GatherND", boxes, graph.op("Concat", first, box, axis=1)), image

    def box_head(
        self, pyramid: Sequence[str], boxes: str, image: str, limit: str, scale: str
    ) -> tuple[str, str, str, str]:
        """Box head: boxes `[D, 4]` in the original's pixels, their scores, labels and images."""
        graph, layers, config = self.graph, self.layers, self.numbers
        name, classes = "roi_head.bbox_head", self.config.num_classes
        x, order = roi_align(graph, pyramid, boxes, image, BOX_SIDE)
        boxes, image = graph.op("Gather", boxes, order), graph.op("Gather", image, order)
        x = graph.to_precision(graph.reshape(x, -1, config.fpn_dim * BOX_SIDE**2))
        for i in (0, 1):
            x = graph.op("Relu", layers.linear(x, f"{name}.shared_fcs.{i}"))
        x = graph.to_float32(x)
        logits = layers.exact_linear(x, f"{name}.fc_cls")
        deltas = graph.reshape(self.box_deltas(x, f"{name}.fc_reg", BOX_STDS), -1, classes, 4)
        return self.found(logits, deltas, boxes, image, limit, scale)

    def found(
        self, logits: str, deltas: str, boxes: str, image: str, limit: str, scale: str
    ) -> tuple[str, str, str, str]:
        """Detections of logits `[R, classes + 1]` and deltas `[R, classes, 4]` of boxes."""
        graph, config, classes = self.graph, self.numbers, self.config.num_classes
        scores = graph.op("Softmax", logits, axis=-1)
        scores = graph.slice(scores, 0, classes)  # without the background
        rows = true_rows(graph, graph.op("Greater", scores, number(graph, config.min_score)))
        row, label = column(graph, rows, 0), column(graph, rows, 1)
        image = graph.op("Gather", image, row)
        score = graph.op("GatherND", scores, rows)
        box = decode(
            graph,
            graph.op("Gather", boxes, row),
            graph.op("GatherND", deltas, rows),
            graph.op("Gather", limit, image),
        )
        box = graph.op("Div", box, graph.op("Gather", scale, image))
        best = self.suppress_detections(box, score, label, image, graph.shape(limit, 0))
        box, score, label, image = (
            graph.op("Gather", value, best) for value in (box, score, label, image)
        )
        return box, score, label, image

    def box_deltas(self, x: str, name: str, deviations: Sequence[float]) -> str:
        """The regression layer, the coder's standard deviations folded in."""
        weights = self.layers.weights
        stds = np.tile(np.array(deviations, np.float32), self.config.num_classes)
        weight = self.graph.weight(
            f"{name}.scaled.weight", weights[f"{name}.weight"] * stds[:, None]
        )
        bias = self.graph.weight(f"{name}.scaled.bias", weights[f"{name}.bias"] * stds)
        return self.graph.op("Gemm", x, weight, bias, transB=1)

    def suppress_detections(
        self, boxes: str, scores: str, labels: str, image: str, batch: str
    ) -> str:
        """Which of the candidates `[T]` stay, image by image, best first.

        Suppression is inside each class of each image; then the best of each image are taken.
        """
        graph, config = self.graph, self.numbers
        classes = graph.constant(self.config.num_classes)
        group = graph.op("Add", graph.op("Mul", image, classes), labels)
        groups = graph.range(graph.op("Mul", batch, classes))
        flat = graph.op("Unsqueeze", scores, graph.constant([0]))
        chosen = graph.op(
            "NonMaxSuppression",
            graph.op("Unsqueeze", boxes, graph.constant([0])),
            by_group(graph, group, groups, flat),
            graph.constant([config.max_detections]),
            graph.constant([config.box_iou], np.float32),
            graph.constant([0], np.float32),
        )
        kept = column(graph, chosen, 2)  # [M]
        image, scores = graph.op("Gather", image, kept), graph.op("Gather", scores, kept)
        numbers = graph.op("Unsqueeze", graph.range(batch), graph.constant([1]))
        own = graph.op("Where", graph.op("Equal", image, numbers), scores, number(graph, NEVER))
        # One more column that is never taken: there may be no other.
        none = graph.op("Expand", number(graph, NEVER), graph.op("Shape", numbers))
        own = graph.op("Concat", own, none, axis=1)
        count = least(graph, graph.shape(own, 1), config.max_detections)
        best, index = graph.ops("TopK", own, graph.vector(count), outputs=2, axis=1)
        rows = true_rows(graph, graph.op("Greater", best, number(graph, 0)))
        return graph.op("Gather", kept, graph.op("GatherND", index, rows))

    def mask_head(self, pyramid: Sequence[str], boxes: str, labels: str, image: str) -> str:
        """Mask head: probabilities `[D, 28, 28]` inside boxes in pixels of the input.

        The last convolution computes only the mask of each detection's own class.
        """
        graph = self.graph
        x, order = roi_align(graph, pyramid, boxes, image, MASK_SIDE)
        masks = self.masks(graph.to_precision(x), graph.op("Gather", labels, order))
        places = graph.op("Unsqueeze", order, graph.constant([1]))
        return graph.op("ScatterND", masks, places, masks)  # back in the detections' order

    def masks(self, x: str, labels: str) -> str:
        """Probabilities `[D, 28, 28]` of what RoIAlign gave."""
        return self.mask(x, labels, "roi_head.mask_head")

    def mask(self, x: str, labels: str, name: str) -> str:
        """One mask head's."""
        graph, weights = self.graph, self.layers.weights
        width, cells = self.numbers.fpn_dim, (2 * MASK_SIDE) ** 2
        for i in range(4):
            x = graph.op("Relu", self.named_conv(x, f"{name}.convs.{i}.conv"))
        keys = (f"{name}.upsample.weight", f"{name}.upsample.bias")
        up = {key: weights[key] for key in keys}
        twice = {"kernel_shape": (2, 2), "strides": (2, 2)}
        x = graph.op("Relu", map_op(self.layers, "ConvTranspose", x, up, **twice))
        x = graph.to_float32(graph.reshape(x, -1, width, cells))
        per_class = weights[f"{name}.conv_logits.weight"].reshape(-1, 1, width)
        chosen = graph.op("Gather", graph.weight(f"{name}.per_class.weight", per_class), labels)
        offset = weights[f"{name}.conv_logits.bias"].reshape(-1, 1, 1)
        offsets = graph.op("Gather", graph.weight(f"{name}.per_class.bias", offset), labels)
        logits = graph.op("Add", graph.op("MatMul", chosen, x), offsets)
        return graph.reshape(graph.op("Sigmoid", logits), -1, 2 * MASK_SIDE, 2 * MASK_SIDE)

    def named_conv(self, x: str, name: str) -> str:
        weights = self.layers.weights
        return conv(self.layers, x, name, weights[f"{name}.weight"], weights[f"{name}.bias"])
