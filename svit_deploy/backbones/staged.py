"""The graph of backbones in stages (see `stages`).

A block has two halves. The first mixes tokens and needs the whole map; the second computes each
token by itself, so that a method may let it compute some of them, or others in another way.
"""

from __future__ import annotations

from typing import Any

from svit_deploy.backbones.tokens import GraphTokens
from svit_deploy.backbones.writer import GraphWriter


class StagedGraph(GraphWriter):
    def places(self) -> list[tuple[Any, int]]:
        """The stage of each block, and its number there."""
        raise NotImplementedError

    def embed(self, images: str) -> str:
        """`[B, 3, H, W]` -> rows `[B * tokens, C]` of the first stage."""
        raise NotImplementedError

    def shrink(self, x: str, stage: Any) -> str:
        """Rows of the stage before -> those that this one begins with."""
        raise NotImplementedError

    def mix(self, x: str, block: int) -> tuple[str, str]:
        """A block's first half: what its second half is added to, and what that computes from."""
        raise NotImplementedError

    def feed(self, x: str, block: int) -> str:
        """What a block's second half adds, of any rows `[R, C]`."""
        raise NotImplementedError

    def name_of(self, block: int) -> str:
        """A block in the names of weights."""
        stage, number = self.places()[block]
        return str(stage.block(number))

    def run(self, images: str) -> GraphTokens:
        tokens = self.method.graph(self, self.embed(images))
        for number, (stage, block) in enumerate(self.places()):
            if stage.index and not block:
                with self.graph.scope(f"block_{number}"):
                    tokens.put_map(self.shrink(tokens.map(), stage))
            tokens.count = stage.tokens
            tokens.step(number)
        return tokens

    def plain_block(self, rows: str, block: int, count: int | str) -> str:
        x, mixed = self.mix(rows, block)
        with self.graph.scope("mlp"):
            return self.graph.op("Add", x, self.feed(mixed, block))
