"""SViT without reactivation, with a fixed keep ratio, or with one gate for several blocks.

What SViT's paper compares itself with; no weights are published. Masks that are inherited are
those of uzh-rpg/svit @ d2472c13 (`inherit_mask`; in its detectors with gates in front of blocks 3,
6 and 9, each for the blocks up to the next). Margins say it all: -inf for a token that a former
gate pruned, and counted from half-way between the last that a fixed ratio keeps and the next one.
So a token is kept iff its margin is above the threshold, as in SViT.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from svit_deploy.backbones.tokens import GatedForward
from svit_deploy.errors import InputError
from svit_deploy.graph.builder import INT64_MAX
from svit_deploy.graph.maps import total
from svit_deploy.graph.ranking import top_k
from svit_deploy.graph.tokens import LOWEST, Selection, share_of
from svit_deploy.methods.method import Gates
from svit_deploy.methods.svit import Svit, SvitGraph, SvitReference
from svit_deploy.model.arch import Arch
from svit_deploy.model.assumption import typed
from svit_deploy.model.config import ModelConfig, check_ratios
from svit_deploy.names import packed_name

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SvitVariantSettings:
    """What a training chooses; all defaults together are SViT.

    Attributes:
        inherit_mask: whether a token that a gate pruned stays pruned: masks are multiplied.
        merge_gates: whether a gate decides for all blocks up to the next gate.
        fixed_ratio: of each gate, or of all, the share of its tokens, rounded down, that it keeps
            of every image; 1 where the content decides.
    """

    inherit_mask: bool = False
    merge_gates: bool = False
    fixed_ratio: tuple[float, ...] = (1.0,)

    def share(self, gate: int) -> float:
        """The fixed ratio of a gate."""
        return self.fixed_ratio[gate if self.fixed_ratio[1:] else 0]


class SvitVariantGraph(SvitGraph):
    selection: Selection | None = None
    first = 0

    def block(self, block: int) -> str:
        merged = self.config.settings.merge_gates and self.selection is not None
        if block in self.config.gate_of or not merged:
            self.first = block
            return super().block(block)
        selection = self.selection
        assert selection is not None
        if selection.lengths is not None and self.writer.options.plugins:
            lengths = self.graph.op("Identity", packed_name(self.first, "lengths"))
            selection = replace(selection, lengths=lengths)
        return self.gated(block, selection)

    def select(self, gate: int) -> Selection:
        self.selection = super().select(gate)
        return self.selection

    def margin(self, gate: int) -> str:
        graph, settings, margin = self.graph, self.config.settings, super().margin(gate)
        if settings.inherit_mask and self.selection is not None:
            gone = graph.constant(-np.inf, np.float32)
            margin = graph.op("Where", self.selection.keep, margin, gone)
        prefix, share = self.config.first_gated(gate), settings.share(gate)
        if share == 1:
            return margin
        count = share_of(graph, share, self.writer.num_tokens, prefix)
        most = int((self.writer.most_tokens - prefix) * share)
        ranked = graph.slice(margin, prefix, INT64_MAX) if prefix else margin
        best, _ = top_k(graph, ranked, total(graph, count, 1), most + 1)
        last, after = graph.slice(best, -2, -1), graph.slice(best, -1, INT64_MAX)

        def there(value: str) -> str:
            return graph.op("Greater", value, graph.constant(LOWEST, np.float32))

        middle = graph.op("Mul", graph.op("Add", last, after), graph.constant(0.5, np.float32))
        below = graph.op("Sub", last, graph.constant(1, np.float32))
        cut = graph.op("Where", there(after), middle, below)
        cut = graph.op("Where", there(last), cut, graph.constant(0, np.float32))
        return graph.op("Sub", margin, cut)


class SvitVariantReference(SvitReference):
    kept: Tensor | None = None

    def block(self, block: int) -> GatedForward:
        import torch

        if block in self.config.gate_of or self.kept is None or not self.merges:
            yield from super().block(block)
            return
        computed = self.backbone.block(self.rows, block, self.kept)
        self.rows = torch.where(self.kept[..., None], computed, self.rows)

    @property
    def merges(self) -> bool:
        return bool(self.config.settings.merge_gates)

    def decided(self, keep: Tensor) -> None:
        self.kept = keep

    def margin(self, gate: int) -> Tensor:
        import torch

        settings, margin = self.config.settings, super().margin(gate)
        if settings.inherit_mask and self.kept is not None:
            margin = margin.masked_fill(~self.kept, -torch.inf)
        if (share := settings.share(gate)) < 1:
            first = self.config.first_gated(gate)
            ranked = margin[:, first:].sort(dim=1, descending=True).values
            count = int(ranked.shape[1] * share)
            last, after = ranked[:, count - 1, None], ranked[:, count, None]
            cut = torch.where(after.isinf(), last - 1, (last + after) / 2)
            margin = margin - cut.where(~last.isinf(), torch.zeros(()))
        return margin


class SvitVariant(Svit):
    title = "a variant of SViT"
    settings = SvitVariantSettings
    bars = True

    def gates(self, arch: Arch, dims: Any, settings: Any, class_token: bool) -> Gates:
        """Merged ones share out the blocks evenly: 3, 6 and 9 of twelve."""
        if settings is not None and settings.merge_gates and not arch.gate_blocks:
            every = dims.depth // (dims.num_gates + 1)
            blocks = tuple(every * (gate + 1) for gate in range(dims.num_gates))
            arch = replace(arch, gate_blocks=blocks)
        return super().gates(arch, dims, settings, class_token)

    def check(self, config: ModelConfig) -> None:
        ratios, gates = config.settings.fixed_ratio, range(config.num_gates)
        check_ratios(ratios, "fixed_ratio")
        if gates and len(ratios) not in (1, len(gates)):
            raise InputError(
                f"fixed_ratio has {len(ratios)} values for {len(gates)} gates",
                "give one per gate, or one for all",
            )
        for gate in gates:
            if not int(config.gated_tokens(gate) * config.settings.share(gate)):
                raise InputError(
                    f"gate {gate} of fixed_ratio {typed(ratios)} keeps none of "
                    f"{config.gated_tokens(gate)} tokens",
                    "give larger shares, or use a larger image",
                )

    def graph(self, writer: Any, rows: str) -> SvitVariantGraph:
        self.check(writer.config.at(writer.sizes.min))
        return SvitVariantGraph(writer, rows)

    def reference(self, backbone: Any, x: Tensor) -> SvitVariantReference:
        return SvitVariantReference(backbone, x)
