"""What a token-reduction method is: data, and what differs from a plain DeiT.

The defaults of `Method` are those of DeiT. A method states what it differs in, in one module of
this package: its keys, its settings, its plain PyTorch forward and its graph. Everything else,
`export`, `verify`, `bench`, `inspect` and `visualize`, asks the method and knows none by name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from svit_deploy.config import ModelConfig, TokenMode
from svit_deploy.errors import InputError, UsageError
from svit_deploy.export import names
from svit_deploy.export.vit import VitGraph
from svit_deploy.methods.keys import Dims, Shape, Tensors, vit_shapes

if TYPE_CHECKING:
    from torch import Tensor

    from svit_deploy.models.presets import Arch
    from svit_deploy.models.reference import Passed, Reference, Steps

Values = dict[str, tuple[type[np.generic], Shape]]


@dataclass(frozen=True)
class Gates:
    """Where tokens are selected, and what was assumed about it.

    Attributes:
        blocks: the block, counted from 0, that each selection stands in front of or inside.
        class_token: whether each may prune the class token.
    """

    blocks: tuple[int, ...] = ()
    class_token: tuple[bool, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Selected:
    """What the tokens of each image became, selection by selection.

    Attributes:
        keep_mask: `[B, G, S]` bool, S the tokens of the image and any that the method adds.
        margin: `[B, G, S]` float32, what they are ranked by: +inf for tokens that are always
            kept, -inf for those that are no longer there.
        source: `[B, G, S]` int64, the token that each is part of afterwards, itself if it was
            neither merged nor pruned; None where nothing is merged.
        lead: `[B, G, S]` float32, by how much the token that each merges into is nearer than the
            next, infinite for those that do not merge; None where the reference alone knows.
    """

    keep_mask: np.ndarray
    margin: np.ndarray
    source: np.ndarray | None = None
    lead: np.ndarray | None = None


def nothing_selected(batch: int, columns: int) -> Selected:
    empty = np.zeros((batch, 0, columns), np.float32)
    return Selected(empty.astype(bool), empty)


class Method:
    """A token-reduction method; the defaults are a plain DeiT's.

    Attributes:
        name: the family's name in configurations.
        title: the method's name in its paper.
        modes: token modes in which its graph equals the model; the first is the default.
        eps: LayerNorm epsilon of blocks, gates and the final norm.
        config: the kind of its configurations.
        settings: a frozen dataclass of what its weights cannot tell. Fields without a default
            must be given. A boolean, a number, or a tuple of them each.
        sizes: those of the settings that are sizes of weights; for random ones they must be given.
        keys_of: the method whose checkpoints it runs on; its own by default.
        graph: writes its ONNX graph; None for `VitGraph`.
        rule: how tokens are selected, for the record.
        trained_gates: whether its gates have thresholds that a training set.
        removes: whether a token that is not kept is gone for good.
        class_token: whether its tokens begin with one.
        classifies: whether its models are classifiers; others have a task (`detection`).
        has_positions: whether its weights hold an embedding of positions.
        ranks_inside: whether tokens are ranked by values from inside a block (attention, keys),
            which are of the graph's precision; what is computed of them is float32 all the same.
        margin_unit: what errors of margins are counted in; None for logits, which are counted in
            max(1, rms of the gate's).
    """

    name: ClassVar[str]
    title: ClassVar[str]
    modes: ClassVar[tuple[TokenMode, ...]] = (TokenMode.DENSE,)
    eps: ClassVar[tuple[float, float, float]] = (1e-6, 1e-6, 1e-6)
    config: ClassVar[type[ModelConfig]] = ModelConfig
    settings: ClassVar[type | None] = None
    sizes: ClassVar[tuple[str, ...]] = ()
    keys_of: ClassVar[str] = ""
    graph: ClassVar[type[VitGraph] | None] = None
    rule: ClassVar[str] = "as many tokens of the highest margins as the method keeps"
    trained_gates: ClassVar[bool] = False
    removes: ClassVar[bool] = False
    class_token: ClassVar[bool] = True
    classifies: ClassVar[bool] = True
    has_positions: ClassVar[bool] = True
    ranks_inside: ClassVar[bool] = False
    margin_unit: ClassVar[float | None] = None

    # What a checkpoint tells.

    def matches(self, keys: Collection[str]) -> bool:
        """Whether these are its keys; asked of each method in turn."""
        return False

    def told(self, args: Mapping[str, Any]) -> dict[str, Any] | None:
        """Settings that the arguments of a training tell, or None if they are another method's."""
        return None

    def told_by_weights(self, dims: Dims) -> dict[str, Any]:
        """Settings that follow from the sizes of the weights."""
        return {}

    def is_spare(self, key: str) -> bool:
        """Whether inference does without an official tensor of that name."""
        return False

    def official_name(self, name: str) -> str:
        """A canonical name in the layout of the official repository."""
        return name

    def infer(self, tensors: Tensors) -> Dims:
        """Reads the sizes off a few tensors; all are checked against the rest later."""

        def shape(name: str, rank: int) -> Shape:
            return tensors.shape(self.official_name(name), rank)

        width, _, patch_size, _ = shape("patch_embed.proj.weight", 4)
        distilled = "dist_token" in tensors.arrays
        return Dims(
            family=self.name,
            embed_dim=width,
            depth=tensors.count("blocks"),
            mlp_dim=shape("blocks.0.mlp.fc1.weight", 2)[0],
            patch_size=patch_size,
            num_patches=shape("pos_embed", 3)[1] - self.class_token - distilled,
            num_classes=shape("head.weight", 2)[0],
            distilled=distilled,
        )

    def shapes(self, dims: Dims) -> dict[str, Shape]:
        """Canonical name to shape, for every tensor of a model."""
        return vit_shapes(dims)

    def sketch(self, arch: Arch) -> Dims:
        """The sizes of an architecture whose sizes are all given, for random weights.

        Raises:
            UsageError: one of them is impossible.
        """
        assert arch.embed_dim and arch.depth and arch.patch_size and arch.image_size
        height, width = arch.image_size
        return Dims(
            family=self.keys_of or self.name,
            embed_dim=arch.embed_dim,
            depth=arch.depth,
            mlp_dim=4 * arch.embed_dim,
            patch_size=arch.patch_size,
            num_patches=(height // arch.patch_size) * (width // arch.patch_size),
            num_classes=arch.num_classes or 1000,
            distilled=bool(arch.distilled),
        )

    # Configuration.

    def choose(self, given: Mapping[str, Any]) -> Any:
        """An instance of `settings` from values by name.

        Raises:
            UsageError: a name that the method does not know.
            InputError: one is missing.
        """
        known = fields(self.settings) if self.settings else ()
        foreign = [name for name in given if name not in {field.name for field in known}]
        if foreign:
            raise UsageError(
                f"{foreign[0]} is no setting of {self.name}",
                f"use {', '.join(field.name for field in known)}" if known else "leave it out",
            )
        missing = [f.name for f in known if f.default is MISSING and f.name not in given]
        if missing:
            examples = " ".join(f"--set {name}=VALUE" for name in missing)
            raise InputError(
                f"neither the weights nor the training's arguments tell {' and '.join(missing)} "
                f"of this {self.title}",
                f"give {examples}, or the same in an architecture file",
            )
        return self.settings(**given) if self.settings else None

    def gates(self, arch: Arch, dims: Dims, settings: Any) -> Gates:
        """Where tokens are selected: by default at the blocks of a setting `prune_blocks`."""
        blocks = getattr(settings, "prune_blocks", ())
        return Gates(blocks, (False,) * len(blocks))

    def places(self, config: ModelConfig) -> tuple[int, ...] | None:
        """The blocks of the selections that the settings ask for; None if they do not tell."""
        return getattr(config.settings, "prune_blocks", None)

    def check(self, config: ModelConfig) -> None:
        """Raises InputError or UsageError for a configuration that this method cannot have.

        Whether it is a user's or a manifest's: of the settings nothing is known but their types.
        """

    def refuse_distillation_token(self, config: ModelConfig) -> None:
        """For the `check` of methods that could prune it."""
        if config.distilled and config.gate_blocks:
            raise InputError(
                f"{self.title} could drop the distillation token, which the head reads",
                "give a checkpoint without one, or use --tokens dense",
            )

    def default_mode(self, engine: bool) -> TokenMode:
        """The token mode to export in, for a TensorRT engine or not."""
        static = [mode for mode in self.modes if mode in (TokenMode.BUDGET, TokenMode.STATIC)]
        return static[0] if engine and static else self.modes[0]

    # Decisions: `G` of them, none for a model whose dense twin this is.

    @property
    def counted(self) -> bool:
        """Whether it fixes how many tokens remain, so that its graphs are static."""
        return TokenMode.STATIC in self.modes

    def kept(self, config: ModelConfig) -> tuple[int, ...]:
        """Tokens that remain of each image after each selection, prefix included, if counted."""
        return ()

    def columns(self, config: ModelConfig) -> int:
        """Tokens that keep masks tell about: an image's own, and any that the method adds."""
        return config.num_tokens

    def values(self, config: ModelConfig) -> Values:
        """The graph's values that decide, with the shape of each for one image.

        Those of type float32 are what tokens are ranked by; the others say what was selected,
        and given them nothing else depends on the ranking.
        """
        shape = (config.num_tokens,)
        result: Values = {}
        for gate in range(config.num_gates):
            result[names.margin_name(gate)] = (np.float32, shape)
            result[names.decision_name(gate)] = (np.bool_, shape)
        return result

    def hints(self, config: ModelConfig) -> Values:
        """Values beside those that only the reference tells: how near it was to others."""
        return {}

    def trace(self, config: ModelConfig, values: Mapping[str, np.ndarray], batch: int) -> Selected:
        """What became of each token of `batch` images, out of the `values` of a run."""
        gates = range(config.num_gates)
        if not gates:
            return nothing_selected(batch, config.num_tokens)
        return Selected(
            np.stack([values[names.decision_name(gate)] for gate in gates], 1),
            np.stack([values[names.margin_name(gate)] for gate in gates], 1),
        )

    # The plain PyTorch forward pass.

    def forward(self, reference: Reference, images: Tensor) -> Passed | Steps:
        """Runs images `[B, 3, H, W]`, as the paper evaluates the model.

        A method whose decisions are thresholds on margins yields each gate's number and margins
        `[B, S]`, takes its keep mask `[B, S]`, and returns the same in the end.
        """
        from svit_deploy.models.reference import Passed

        x = reference.embed(images)
        maps = [x]
        for block in range(reference.config.depth):
            x = reference.block(x, block)
            maps.append(x)
        return Passed(reference.classify(x), maps)
