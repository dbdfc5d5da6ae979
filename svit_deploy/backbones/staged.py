"""The graph of backbones in stages (see `stages`)."""

from __future__ import annotations

from svit_deploy.backbones.stages import Staged
from svit_deploy.backbones.tokens import GraphTokens
from svit_deploy.backbones.writer import GraphWriter


class StagedGraph(Staged[str], GraphWriter):
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
