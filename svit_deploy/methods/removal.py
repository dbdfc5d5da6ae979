"""What stands in the places of tokens that left, where something between two blocks needs them all.

Classifiers never ask. The injectors and extractors of a ViT-Adapter do: the paper of SViT (WACV
2024, Table 5) gives them zeros, or the features that a token had when it left. No code of it is
published; the tokens that a method adds (EViT's fused one) have no place in the map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from svit_deploy.backbones.tokens import GraphTokens, ReferenceTokens
from svit_deploy.errors import InputError
from svit_deploy.graph.maps import product, total
from svit_deploy.graph.rows import flat_rows, gather_rows, scatter_rows
from svit_deploy.graph.survivors import Survivors
from svit_deploy.names import INPUT

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RemovalSettings:
    """No model is published; the defaults are the paper's words.

    Attributes:
        preserve: whether a token that leaves keeps its features in the map, where injectors go on
            to change them, as in SViT; else its place holds zeros.
        inject_removed: whether what an injector adds to these zeros stays there.
    """

    preserve: bool = False
    inject_removed: bool = False


def check_removal(settings: Any) -> None:
    """Raises InputError for settings that contradict each other."""
    if settings.preserve and settings.inject_removed:
        raise InputError(
            "inject_removed is about zeros, and with preserve there are none",
            "leave one of the two out",
        )


class RemovingGraph(GraphTokens):
    """Tokens that leave for good.

    Attributes:
        added: tokens that the method adds.
        width: places of an image: its tokens, and the added ones behind them.
        whole: `[B * width, C]`, what stands in places of tokens that left; None for zeros.
    """

    whole: str | None = None
    removed = False

    def __init__(self, writer: Any, rows: str) -> None:
        super().__init__(writer, rows)
        settings = self.config.settings
        self.added = writer.method.mask_width(self.config) - self.config.num_tokens
        self.width = total(self.graph, writer.num_tokens, self.added)
        self.preserve = getattr(settings, "preserve", False)
        self.inject_removed = getattr(settings, "inject_removed", False)

    def put(self, whole: str, rows: str) -> str:
        """All places, of them those of tokens that are left exchanged for `rows`."""
        raise NotImplementedError

    def take(self, whole: str) -> str:
        """The rows of the tokens that are left."""
        raise NotImplementedError

    def leave(self, rows: str) -> None:
        """Is told, before each selection, of the tokens that it chooses from."""
        if self.preserve:
            self.whole = self.complete(rows)
        self.removed = True

    def complete(self, rows: str) -> str:
        """All places `[B * width, C]`, with these rows of the tokens that are left."""
        if self.removed:
            return self.put(self.whole or self.zeros(), rows)
        return self.put(self.zeros(), rows) if self.added else rows

    def zeros(self) -> str:
        graph = self.graph
        places = product(graph, graph.shape(INPUT, 0), self.width)
        width = graph.constant([self.config.embed_dim])
        shape = graph.op("Concat", graph.vector(places), width, axis=0)
        return graph.op("Expand", graph.number([[0]]), shape)

    def map(self) -> str:
        if not self.removed:
            return super().map()
        return self.writer.patches_of(self.complete(self.rows), self.added)

    def put_map(self, x: str) -> None:
        if not self.removed:
            super().put_map(x)
            return
        whole = self.writer.with_patches(self.complete(self.rows), x, self.added)
        self.rows = self.take(whole)
        if self.preserve:
            self.whole = whole
        elif self.inject_removed:
            graph = self.graph
            nothing = graph.op("Expand", graph.number([[0]]), graph.op("Shape", self.rows))
            self.whole = self.put(whole, nothing)


class RankedGraph(RemovingGraph):
    """The best go on in the order of their rank."""

    def __init__(self, writer: Any, rows: str) -> None:
        super().__init__(writer, rows)
        prefix = self.config.prefix_tokens
        self.survivors = Survivors(self.graph, INPUT, self.width, writer.num_tokens, prefix)

    def put(self, whole: str, rows: str) -> str:
        return scatter_rows(self.graph, whole, self.places(), rows)

    def take(self, whole: str) -> str:
        return gather_rows(self.graph, whole, self.places())

    def places(self) -> str:
        return flat_rows(self.graph, self.survivors.places, self.width)


class RemovingReference(ReferenceTokens):
    """Tokens that leave for good.

    Attributes:
        places: `[B, T]`, where those that are left stand among all of an image.
        whole: `[B, W, C]`, what stands where tokens left.
    """

    def __init__(self, backbone: Any, rows: Tensor, added: int = 0) -> None:
        import torch

        super().__init__(backbone, rows)
        images, self.tokens, width = rows.shape
        self.places = torch.arange(self.tokens).repeat(images, 1)
        self.whole = torch.zeros(images, self.tokens + added, width)
        settings = self.config.settings
        self.preserve = getattr(settings, "preserve", False)
        self.inject_removed = getattr(settings, "inject_removed", False)

    def keep(self, rows: Tensor, kept: Tensor) -> Tensor:
        """Those of `rows [B, T, C]` at `kept [B, K]`; the others leave."""
        import torch

        if self.preserve:
            self.whole = self.complete(rows)
        self.places = torch.take_along_dim(self.places, kept, dim=1)
        return torch.take_along_dim(rows, kept[..., None], dim=1)

    def put(self, whole: Tensor, rows: Tensor) -> Tensor:
        return whole.scatter(1, self.places[..., None].expand_as(rows), rows)

    def complete(self, rows: Tensor) -> Tensor:
        """All places `[B, W, C]`, with these rows of the tokens that are left."""
        return self.put(self.whole, rows)

    def map(self) -> Tensor:
        return self.complete(self.rows)[:, self.config.prefix_tokens : self.tokens]

    def put_map(self, x: Tensor) -> None:
        import torch

        whole = self.complete(self.rows)
        whole[:, self.config.prefix_tokens : self.tokens] = x
        self.rows = torch.take_along_dim(whole, self.places[..., None], dim=1)
        if self.preserve:
            self.whole = whole
        elif self.inject_removed:
            self.whole = self.put(whole, torch.zeros_like(self.rows))
