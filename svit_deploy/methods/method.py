"""What a token-reduction method is: data, and what differs from selecting nothing.

The defaults of `Method` are those of a dense model. A method states what it differs in, in one
module or folder of this package: its own keys and settings, its selection in the graph and in the
plain PyTorch forward. On which backbones it runs, `families` says.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from svit_deploy import names
from svit_deploy.backbones.tokens import GraphTokens, ReferenceTokens
from svit_deploy.errors import InputError
from svit_deploy.model.arch import Arch
from svit_deploy.model.config import ModelConfig, TokenMode
from svit_deploy.model.keys import Shape, Tensors
from svit_deploy.model.result import Selected
from svit_deploy.model.sizes import Misfit

if TYPE_CHECKING:
    from torch import Tensor

Values = dict[str, tuple[type[np.generic], tuple[int, ...]]]


@dataclass(frozen=True)
class Gates:
    """Where tokens are selected.

    Attributes:
        blocks: the block, counted from 0, that each selection stands in front of or inside.
        class_token: whether each may prune the class token.
    """

    blocks: tuple[int, ...] = ()
    class_token: tuple[bool, ...] = ()


def shared_out(depth: int, stages: int) -> tuple[int, ...]:
    """The blocks that so many stages begin with where they share out the blocks evenly."""
    every = depth // (stages + 1)
    return tuple(every * (stage + 1) for stage in range(stages))


class Method:
    """Which tokens each block computes; by default all.

    Attributes:
        title: its name in its paper.
        modes: token modes in which its graph equals the model; the first is the default.
        settings: a frozen dataclass, keyword only, of what its weights cannot tell. Fields
            without a default must be given. A boolean, a number, or a tuple of them each.
        told_by_weights: names among the settings that are sizes of the weights, too.
        required: names among the settings that random weights need.
        rule: how tokens are selected, for the record.
        blocks_setting: the setting that tells in which blocks.
        trained_gates: whether its gates have thresholds that a training set.
        removes: whether a token that is not kept is gone for good.
        bars: whether a token that is still there may be out of a gate's reach, its margin -inf.
        ranks_inside: whether tokens are ranked by values from inside a block (attention, keys),
            which are of the graph's precision; what is computed of them is float32 all the same.
        gate_stage: of a backbone in stages, the one whose tokens are selected.
        margin_unit: what errors of margins are counted in; None for logits, which are counted in
            max(1, rms of the gate's).
    """

    title: ClassVar[str]
    modes: ClassVar[tuple[TokenMode, ...]] = (TokenMode.DENSE,)
    settings: ClassVar[type | None] = None
    told_by_weights: ClassVar[tuple[str, ...]] = ()
    required: ClassVar[tuple[str, ...]] = ()
    blocks_setting: ClassVar[str] = "gate_blocks"
    rule: ClassVar[str] = "as many tokens of the highest margins as the method keeps"
    trained_gates: ClassVar[bool] = False
    removes: ClassVar[bool] = False
    bars: ClassVar[bool] = False
    ranks_inside: ClassVar[bool] = False
    gate_stage: ClassVar[int] = 0
    margin_unit: ClassVar[float | None] = None

    # What a checkpoint tells.

    def matches(self, keys: Collection[str]) -> bool:
        """Whether these are its keys, whatever the backbone."""
        return False

    def settings_from_args(self, args: Mapping[str, Any]) -> dict[str, Any] | None:
        """Settings that a training's arguments tell, or None if they are another method's.

        Values as the arguments have them, numbers or text; `loading.known_settings` parses them.
        """
        return None

    def upgrade(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """A manifest's settings, of whatever version, as this version has them."""
        return settings

    def is_unused(self, key: str) -> bool:
        """Whether inference does without an official tensor of that name."""
        return False

    def official_name(self, name: str) -> str:
        """A canonical name in the layout of the official repository."""
        return name

    def infer(self, tensors: Tensors, dims: Any) -> Any:
        """The backbone's sizes with those of the method's own weights."""
        return dims

    def shapes(self, shapes: dict[str, Shape], dims: Any) -> dict[str, Shape]:
        """The backbone's canonical names and shapes with those of the method's own weights."""
        return shapes

    def dims_from_arch(self, dims: Any, arch: Arch) -> Any:
        """`infer` for random weights, from an architecture whose sizes are all given."""
        return dims

    def random(self, weights: dict[str, np.ndarray], settings: Mapping[str, Any]) -> None:
        """Changes random weights that would leave it nothing to decide.

        Args:
            weights: canonical names to arrays of the method's backbone and its own.
            settings: those of the architecture, by name.
        """

    # Configuration.

    def settle(self, settings: Any, dims: Any) -> Any:
        """The settings with those filled in that follow from the sizes of the weights."""
        return settings

    def gates(self, arch: Arch, dims: Any, settings: Any, class_token: bool) -> Gates:
        """Where tokens are selected: by default at the blocks of a setting `prune_blocks`.

        Args:
            class_token: whether the tokens begin with one.
        """
        blocks = getattr(settings, "prune_blocks", ())
        return Gates(blocks, (False,) * len(blocks))

    def places(self, config: ModelConfig) -> tuple[int, ...] | None:
        """The blocks of the selections that the settings ask for; None if they do not tell."""
        return getattr(config.settings, "prune_blocks", None)

    def misfit(self, config: ModelConfig) -> Misfit | None:
        """Why it cannot run the configuration's image size, which the backbone can."""
        return None

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

    # Decisions: `G` of them, none for a model whose dense twin this is. All depend on the size of
    # the image that the configuration names (`ModelConfig.at`).

    @property
    def counted(self) -> bool:
        """Whether it fixes how many tokens remain, so that its graphs are static."""
        return TokenMode.STATIC in self.modes

    def kept(self, config: ModelConfig) -> tuple[int, ...]:
        """Tokens that remain of each image after each selection, prefix included, if counted."""
        return ()

    def mask_width(self, config: ModelConfig) -> int:
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

    def reference_values(self, config: ModelConfig) -> Values:
        """Values beside those that only the reference tells: how near it was to others."""
        return {}

    def decode_selection(
        self, config: ModelConfig, values: Mapping[str, np.ndarray], images: int
    ) -> Selected:
        """What became of each token of so many images, out of the `values` of a run."""
        gates = range(config.num_gates)
        if not gates:
            return Selected.nothing(images, self.mask_width(config))
        return Selected(
            np.stack([values[names.decision_name(gate)] for gate in gates], 1),
            np.stack([values[names.margin_name(gate)] for gate in gates], 1),
        )

    # The selection itself.

    def graph(self, writer: Any, rows: str) -> GraphTokens:
        """The tokens of a graph, of the embedded ones `[B * S, C]`.

        Args:
            writer: the backbone's `writer.GraphWriter`.
        """
        return GraphTokens(writer, rows)

    def reference(self, backbone: Any, x: Tensor) -> ReferenceTokens:
        """The tokens of a plain PyTorch forward, of the embedded ones `[B, S, C]`.

        A method whose decisions are thresholds on margins yields each gate's number and margins
        `[B, S]` and takes its keep mask `[B, S]`, as the paper evaluates the model.

        Args:
            backbone: its `reference.BackboneReference`.
        """
        return ReferenceTokens(backbone, x)


class Dense(Method):
    """No selection: every block computes every token."""

    title = "dense"

    def matches(self, keys: Collection[str]) -> bool:
        firsts = "blocks.0.attn.qkv.weight", "stages.0.0.dwconv.weight"
        return any(key.endswith(firsts) for key in keys)
