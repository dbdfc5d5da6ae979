"""ToMe: in every block, the most similar pairs of tokens become one.

Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023; written from the paper's
description. The tokens of a block are split into those at even places (A, with the class token
first) and those at odd places (B). Each of A finds its most similar in B; the r most similar
pairs merge, by mean weighted with how many patches each token stands for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from svit_deploy.backbones.tokens import GraphTokens, ReferenceTokens
from svit_deploy.errors import InputError
from svit_deploy.methods.method import Gates, Method, Values
from svit_deploy.methods.ranking import merge_parts
from svit_deploy.methods.tome.graph import TomeGraph
from svit_deploy.methods.tome.settings import TomeSettings, merges, schedule
from svit_deploy.model.arch import Arch
from svit_deploy.model.config import ModelConfig, TokenMode
from svit_deploy.model.result import Selected
from svit_deploy.names import decision_name, lead_name, margin_name, target_name

if TYPE_CHECKING:
    from torch import Tensor


class Tome(Method):
    """On DeiT's weights, without parameters of its own."""

    title = "ToMe"
    modes = (TokenMode.STATIC, TokenMode.DENSE)
    settings = TomeSettings
    ranks_inside = True
    margin_unit = 1.0  # of the cosine
    removes = True

    def gates(self, arch: Arch, dims: Any, settings: Any, class_token: bool) -> Gates:
        wanted = schedule(settings, dims.depth)
        blocks = tuple(b for b, pairs in enumerate(wanted[: dims.depth]) if pairs > 0)
        return Gates(blocks, (False,) * len(blocks))

    def places(self, config: ModelConfig) -> tuple[int, ...]:
        wanted = schedule(config.settings, config.depth)
        return tuple(block for block, pairs in enumerate(wanted) if pairs > 0)

    def check(self, config: ModelConfig) -> None:
        settings = config.settings
        wanted = schedule(settings, config.depth) if settings.r else []
        if not wanted or min(wanted) < 0 or len(wanted) > config.depth:
            raise InputError(
                f"r {list(settings.r)} with inflect {settings.inflect:g} is no schedule for "
                f"{config.depth} blocks",
                "give one number, or as many as there are blocks at most, none below 0",
            )
        if self.places(config) and not config.gate_blocks:
            return  # the dense twin
        for block, merge in zip(config.gate_blocks, merges(config), strict=True):
            if merge.pairs < 1:
                raise InputError(
                    f"r {list(config.settings.r)} leaves {merge.tokens} tokens at block {block}, "
                    "and no pair of them can merge",
                    "give a smaller r",
                )

    def kept(self, config: ModelConfig) -> tuple[int, ...]:
        return tuple(merge.tokens - merge.pairs for merge in merges(config))

    def values(self, config: ModelConfig) -> Values:
        values: Values = {}
        for gate, merge in enumerate(merges(config)):
            values[margin_name(gate)] = (np.float32, (merge.a,))
            values[decision_name(gate)] = (np.int64, (merge.pairs,))
            values[target_name(gate)] = (np.int64, (merge.pairs,))
        return values

    def reference_values(self, config: ModelConfig) -> Values:
        found = enumerate(merges(config))
        return {lead_name(gate): (np.float32, (merge.pairs,)) for gate, merge in found}

    def decode_selection(
        self, config: ModelConfig, values: Mapping[str, np.ndarray], images: int
    ) -> Selected:
        tokens, image = config.num_tokens, np.arange(images)[:, None]
        shape = (images, config.num_gates, tokens)
        keep, margin = np.zeros(shape, bool), np.full(shape, -np.inf, np.float32)
        lead, source = np.full(shape, np.inf, np.float32), np.zeros(shape, np.int64)
        names = np.tile(np.arange(tokens), (images, 1))  # of the token at each place
        parts = names.copy()  # the name of the token that each patch is part of
        for gate, merge in enumerate(merges(config)):
            margin[image, gate, names[:, 1::2]] = np.inf
            margin[image, gate, names[:, 0::2]] = values[margin_name(gate)]
            sources = values[decision_name(gate)] * 2
            gone = np.take_along_axis(names, sources, axis=1)
            into = np.take_along_axis(names, values[target_name(gate)] * 2 + 1, axis=1)
            if lead_name(gate) in values:
                lead[image, gate, gone] = values[lead_name(gate)]
            parts = merge_parts(parts, gone, into)
            stays = np.ones((images, merge.tokens), bool)
            np.put_along_axis(stays, sources, False, axis=1)
            a = names[:, 0::2][stays[:, 0::2]].reshape(images, merge.a - merge.pairs)
            b = names[:, 1::2]
            split = [a[:, :1], b[:, :1], a[:, 1:], b[:, 1:]] if config.distilled else [a, b]
            names = np.concatenate(split, axis=1)
            source[:, gate] = parts
            keep[image, gate, names] = True
        return Selected(keep, margin, source, lead)

    def graph(self, writer: Any, rows: str) -> GraphTokens:
        return TomeGraph(writer, rows)

    def reference(self, backbone: Any, x: Tensor) -> ReferenceTokens:
        from svit_deploy.methods.tome.reference import TomeReference

        return TomeReference(backbone, x)
