"""What a backbone is, as data: the layout of its weights, its sizes and its settings."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from svit_deploy.backbones.heads import CLASS_TOKEN, Head
from svit_deploy.backbones.writer import GraphWriter
from svit_deploy.model.arch import Arch
from svit_deploy.model.config import ModelConfig
from svit_deploy.model.keys import Shape, Tensors
from svit_deploy.model.sizes import Misfit, nearest_multiple
from svit_deploy.names import EMBEDDING, block_name

if TYPE_CHECKING:
    from svit_deploy.backbones.reference import BackboneReference

Named = Callable[[str], str]
"""A canonical name in the layout of the official repository."""


class Backbone:
    """How an image becomes tokens and what a block is.

    Attributes:
        title: its name in its paper.
        tasks: names of the tasks that it serves.
        graph: writes its part of a graph.
        head: from its tokens to logits, if it classifies.
        settings: a frozen dataclass, keyword only, of what its weights cannot tell. Fields
            without a default must be given. A boolean, a number, or a tuple of them each.
        sizes: a frozen dataclass of `ModelConfig.backbone`; None without sizes of its own.
        told_by_weights: names among the settings that are sizes of the weights, too.
        required: names among the settings that random weights need.
        eps: LayerNorm epsilon of blocks, gates and the final norm.
        class_token: whether its tokens begin with one.
        has_positions: whether its weights hold an embedding of positions.
        folds_norms: whether its graphs hold batch norms inside the weights of convolutions.
        step: what both sides of an image must be multiples of; None for the patch size.
        frames: of a clip, if nobody says, where it runs videos; 0 where it runs pictures.
    """

    title: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]] = ("classify",)
    graph: ClassVar[type[GraphWriter]]
    head: ClassVar[Head | None] = CLASS_TOKEN
    settings: ClassVar[type | None] = None
    sizes: ClassVar[type | None] = None
    told_by_weights: ClassVar[tuple[str, ...]] = ()
    required: ClassVar[tuple[str, ...]] = ()
    eps: ClassVar[tuple[float, float, float]] = (1e-6, 1e-6, 1e-6)
    class_token: ClassVar[bool] = True
    has_positions: ClassVar[bool] = True
    folds_norms: ClassVar[bool] = False
    step: ClassVar[int | None] = None
    frames: ClassVar[int] = 0

    def reference(self) -> type[BackboneReference]:
        """Its plain PyTorch forward; imports PyTorch."""
        raise NotImplementedError

    def matches(self, keys: Collection[str]) -> bool:
        """Whether these are its keys, whatever the method."""
        raise NotImplementedError

    def is_unused(self, key: str) -> bool:
        """Whether inference does without an official tensor of that name."""
        return False

    def infer(self, family: str, tensors: Tensors, named: Named) -> Any:
        """Reads the sizes off a few tensors; all are checked against the rest later.

        Args:
            named: canonical names to those of the checkpoint.

        Raises:
            InputError: one of the tensors that tell is missing or has the wrong rank.
        """
        raise NotImplementedError

    def dims_from_arch(self, family: str, arch: Arch) -> Any:
        """The sizes of an architecture whose sizes are all given, for random weights.

        Raises:
            UsageError: one of them is missing or impossible.
        """
        raise NotImplementedError

    def shapes(self, dims: Any) -> dict[str, Shape]:
        """Canonical name to shape, for every tensor of a model without a method."""
        raise NotImplementedError

    def settle(self, settings: Any, dims: Any) -> Any:
        """The settings with those filled in that follow from others and from the weights.

        Raises:
            InputError: they contradict each other.
        """
        return settings

    def config_sizes(self, dims: Any, settings: Any) -> Any:
        """An instance of `sizes`."""
        return None

    def feature_widths(self, sized: Any) -> tuple[int, ...]:
        """Channels of its feature maps, finest first, if it has any.

        Args:
            sized: anything with its `embed_dim`.
        """
        return (sized.embed_dim,) * 4

    def patches(self, config: ModelConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """How many there are along each axis, and the sides of one; of a clip along time first."""
        return config.grid, (config.token_size, config.token_size)

    def misfit(self, config: ModelConfig) -> Misfit | None:
        """Why it cannot run the configuration's image size, if it cannot."""
        step, (height, width) = self.step or config.patch_size, config.image_size
        nearest = nearest_multiple(config.image_size, step)
        if nearest == config.image_size:
            return None
        reason = f"image size {height}x{width} is not a multiple of the patch size {step}"
        return Misfit(reason, nearest)

    def check(self, config: ModelConfig) -> None:
        """Raises InputError or UsageError for a configuration that it cannot have.

        Whether it is a user's or a manifest's: of the settings nothing is known but their types.
        """

    def stages(self, config: ModelConfig) -> list[str]:
        """The graph's values that the reference knows, in order, before the task's own."""
        return [EMBEDDING, *(block_name(block) for block in range(config.depth))]

    def random(self, name: str, shape: Shape, rng: np.random.Generator) -> np.ndarray | None:
        """Random weights of a tensor for which the usual ones would not do."""
        return None
