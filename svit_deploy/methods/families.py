"""Which methods run on which backbones: a row each.

A family's name stands in checkpoints' configurations, architecture files and manifests.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, replace
from functools import cached_property
from typing import Any

from svit_deploy.backbones.adapter import Adapter, ClassTokenAdapter
from svit_deploy.backbones.adapter.windowed import WindowedAdapter
from svit_deploy.backbones.backbone import Backbone
from svit_deploy.backbones.convnext import ConvNext
from svit_deploy.backbones.heads import MEAN, PATCH_MEAN, Head
from svit_deploy.backbones.lvvit import LvVit
from svit_deploy.backbones.swin import Swin
from svit_deploy.backbones.swin.pyramid import SwinPyramid
from svit_deploy.backbones.videoswin import VideoSwin
from svit_deploy.backbones.vit import Vit
from svit_deploy.errors import InputError, UsageError
from svit_deploy.methods.ats import Ats, AtsInAdapter
from svit_deploy.methods.avit import Avit
from svit_deploy.methods.dynamic_spatial import CONVNEXT, SWIN, DynamicSpatial
from svit_deploy.methods.dynamicvit import DynamicVit, DynamicVitInAdapter
from svit_deploy.methods.evit import Evit, EvitInAdapter, EvitOnLvVit
from svit_deploy.methods.evovit import EvoVit, EvoVitPerBlock
from svit_deploy.methods.mergence import Mergence, MergenceOnLvVit
from svit_deploy.methods.method import Dense, Method
from svit_deploy.methods.multiscale import MultiScale, MultiScaleOnLvVit
from svit_deploy.methods.stvit import Stvit, StvitOnLvVit
from svit_deploy.methods.stvit.swin import StvitOnSwin, StvitSwin
from svit_deploy.methods.stvit.video import StvitOnVideo, StvitVideoSwin
from svit_deploy.methods.stvitr import StvitR, StvitRSwin
from svit_deploy.methods.stvitr.pyramid import StvitRPyramid, StvitRPyramidSwin
from svit_deploy.methods.svit import Svit
from svit_deploy.methods.svit_variants import SvitVariant
from svit_deploy.methods.tome import Tome
from svit_deploy.model.arch import Arch
from svit_deploy.model.config import ModelConfig, TokenMode
from svit_deploy.model.keys import Shape, Tensors
from svit_deploy.model.sizes import Misfit


@dataclass(frozen=True)
class Family:
    """A method on a backbone.

    Attributes:
        name: in configurations.
        title: in papers.
        eps: LayerNorm epsilon of blocks, gates and the final norm; the backbone's by default.
        head: from tokens to logits; the backbone's by default.
        class_token: whether the tokens begin with one; as the backbone by default.
        keys_of: the family whose checkpoints it runs on; its own by default.
    """

    name: str
    title: str
    backbone: Backbone
    method: Method
    eps: tuple[float, float, float] = (0.0, 0.0, 0.0)
    head: Head | None = None
    class_token: bool = True
    keys_of: str = ""

    @property
    def modes(self) -> tuple[TokenMode, ...]:
        """Token modes in which its graph equals the model; the first is the default."""
        return self.method.modes

    @property
    def dense(self) -> bool:
        """Whether there is nothing to select."""
        return self.modes == (TokenMode.DENSE,)

    @cached_property
    def settings(self) -> type | None:
        """A frozen dataclass of what the weights cannot tell of backbone and method together."""
        parts = [axis.settings for axis in (self.backbone, self.method) if axis.settings]
        if len(parts) < 2:
            return parts[0] if parts else None
        return dataclass(frozen=True)(type(f"{self.name}_settings", tuple(parts), {}))

    @cached_property
    def needed(self) -> tuple[str, ...]:
        """Settings that weights, a training's arguments, a preset or the user must tell."""
        return tuple(entry.name for entry in self._known if entry.default is MISSING)

    @cached_property
    def assumed(self) -> tuple[str, ...]:
        """What is assumed unless somebody tells it, beside the preprocessing."""
        gates = ("gate_blocks", "gate_class_token")[: 1 + self.class_token]
        return (
            *(entry.name for entry in self._known if entry.default is not MISSING),
            *(gates if self.method.trained_gates else ()),
        )

    @property
    def _known(self) -> tuple[Field[Any], ...]:
        return fields(self.settings) if self.settings else ()

    # What a checkpoint tells.

    def matches(self, keys: Collection[str]) -> bool:
        """Whether these are its own keys; asked of each family in turn."""
        return not self.keys_of and self.backbone.matches(keys) and self.method.matches(keys)

    def is_unused(self, key: str) -> bool:
        """Whether inference does without an official tensor of that name."""
        return self.backbone.is_unused(key) or self.method.is_unused(key)

    def official_name(self, name: str) -> str:
        """A canonical name in the layout of the official repository."""
        return self.method.official_name(name)

    def infer(self, tensors: Tensors) -> Any:
        """Reads the sizes off a few tensors."""
        dims = self.backbone.infer(self.name, tensors, self.official_name)
        return self.method.infer(tensors, dims)

    def shapes(self, dims: Any) -> dict[str, Shape]:
        """Canonical name to shape, for every tensor of a model without a task's heads."""
        return self.method.shapes(self.backbone.shapes(dims), dims)

    def dims_from_arch(self, arch: Arch) -> Any:
        """The sizes of an architecture whose sizes are all given, for random weights."""
        dims = self.backbone.dims_from_arch(self.keys_of or self.name, arch)
        return self.method.dims_from_arch(dims, arch)

    @property
    def told_by_weights(self) -> tuple[str, ...]:
        """Names among the settings that are sizes of the weights, too."""
        return (*self.backbone.told_by_weights, *self.method.told_by_weights)

    def settings_from_weights(self, dims: Any) -> dict[str, Any]:
        """The settings that are sizes of the weights, too."""
        return {name: getattr(dims, name) for name in self.told_by_weights}

    # Configuration.

    def choose(self, given: Mapping[str, Any], dims: Any) -> Any:
        """An instance of `settings` from values by name, completed from the weights.

        Raises:
            UsageError: a name that the family does not know.
            InputError: one is missing, or they contradict the weights.
        """
        known = self._known
        foreign = [name for name in given if name not in {field.name for field in known}]
        if foreign:
            raise UsageError(
                f"{foreign[0]} is no setting of {self.name}",
                f"use {', '.join(field.name for field in known)}" if known else "leave it out",
            )
        missing = [name for name in self.needed if name not in given]
        if missing:
            examples = " ".join(f"--set {name}=VALUE" for name in missing)
            raise InputError(
                f"neither the weights nor the training's arguments tell {' and '.join(missing)} "
                f"of this {self.title}",
                f"give {examples}, or the same in an architecture file",
            )
        if self.settings is None:
            return None
        chosen = self.backbone.settle(self.settings(**given), dims)
        return self.method.settle(chosen, dims)

    def misfit(self, config: ModelConfig) -> Misfit | None:
        """Why it cannot run the configuration's image size, if it cannot."""
        return self.backbone.misfit(config) or self.method.misfit(config)

    def check(self, config: ModelConfig) -> None:
        """Raises InputError or UsageError for a configuration that it cannot have."""
        self.backbone.check(config)
        self.method.check(config)


def _rows() -> Sequence[Family]:
    vit, lvvit, swin, convnext = Vit(), LvVit(), Swin(), ConvNext()
    adapter, class_adapter = Adapter(), ClassTokenAdapter()
    svit, variant, evovit, dense = Svit(), SvitVariant(), EvoVit(), Dense()
    # SViT's blocks and gates keep PyTorch's default, where DeiT sets its own everywhere; so do
    # DynamicViT's predictors.
    svit_eps, dynamicvit_eps = (1e-5, 1e-5, 1e-6), (1e-6, 1e-5, 1e-6)
    return (
        Family("dynamicvit_lvvit", "DynamicViT on LV-ViT", lvvit, DynamicVit()),
        Family(
            "multiscale_lvvit", "Multi-scale Token Mergence on LV-ViT", lvvit, MultiScaleOnLvVit()
        ),
        Family(
            "stvit_lvvit",
            "STViT on LV-ViT",
            lvvit,
            StvitOnLvVit(),
            head=MEAN,
            class_token=False,
        ),
        Family("lvvit", "LV-ViT", lvvit, dense),
        Family("dynamicvit_swin", "DynamicViT on Swin", swin, DynamicSpatial(SWIN)),
        Family("dynamicvit_convnext", "DynamicViT on ConvNeXt", convnext, DynamicSpatial(CONVNEXT)),
        Family("convnext", "ConvNeXt", convnext, dense),
        Family("evovit_adapter", "Evo-ViT in ViT-Adapter", class_adapter, EvoVitPerBlock()),
        Family("svit_adapter", "SViT-Adapter", adapter, svit, eps=svit_eps),
        Family(
            "dynamicvit_adapter",
            "DynamicViT in ViT-Adapter",
            adapter,
            DynamicVitInAdapter(),
            eps=dynamicvit_eps,
        ),
        Family("vit_adapter_class", "ViT-Adapter with a class token", class_adapter, dense),
        Family("stvit_video", "STViT on Video Swin", StvitVideoSwin(), StvitOnVideo()),
        Family("stvit_swin", "STViT on Swin", StvitSwin(), StvitOnSwin()),
        Family("stvitr_pyramid", "STViT-R in detectors", StvitRPyramidSwin(), StvitRPyramid()),
        Family("swin_pyramid", "Swin in detectors", SwinPyramid(), dense),
        Family("vit_window_adapter", "ViT-Adapter with windows", WindowedAdapter(), dense),
        Family("vit_adapter", "ViT-Adapter", adapter, dense),
        Family("svit", "SViT", vit, svit, eps=svit_eps),
        Family("dynamicvit", "DynamicViT", vit, DynamicVit(196), eps=dynamicvit_eps),
        Family("evovit", "Evo-ViT", vit, evovit, head=PATCH_MEAN),
        Family("stvitr", "STViT-R", StvitRSwin(), StvitR()),
        Family("video_swin", "Video Swin", VideoSwin(), dense),
        Family("swin", "Swin", swin, dense),
        Family("multiscale", "Multi-scale Token Mergence", vit, MultiScale()),
        Family("stvit", "STViT", vit, Stvit(), head=MEAN, class_token=False),
        Family("deit", "DeiT", vit, dense),
        Family("evit", "EViT", vit, Evit(), keys_of="deit"),
        Family("ats", "ATS", vit, Ats(), keys_of="deit"),
        Family("avit", "A-ViT", vit, Avit(), keys_of="deit"),
        Family(
            "evit_adapter",
            "EViT in ViT-Adapter",
            class_adapter,
            EvitInAdapter(),
            keys_of="vit_adapter_class",
        ),
        Family(
            "ats_adapter",
            "ATS in ViT-Adapter",
            class_adapter,
            AtsInAdapter(),
            keys_of="vit_adapter_class",
        ),
        Family("svit_variant", "SViT's variants", vit, variant, eps=svit_eps, keys_of="svit"),
        Family(
            "svit_adapter_variant",
            "SViT-Adapter's variants",
            adapter,
            variant,
            eps=svit_eps,
            keys_of="svit_adapter",
        ),
        Family("tome", "ToMe", vit, Tome(), keys_of="deit"),
        Family("mergence", "Token Mergence", vit, Mergence(), keys_of="deit"),
        Family("evit_lvvit", "EViT on LV-ViT", lvvit, EvitOnLvVit(), keys_of="lvvit"),
        Family("tome_lvvit", "ToMe on LV-ViT", lvvit, Tome(), keys_of="lvvit"),
        Family(
            "mergence_lvvit", "Token Mergence on LV-ViT", lvvit, MergenceOnLvVit(), keys_of="lvvit"
        ),
    )


def _complete(family: Family) -> Family:
    backbone = family.backbone
    return replace(
        family,
        eps=family.eps if any(family.eps) else backbone.eps,
        head=family.head or backbone.head,
        class_token=family.class_token and backbone.class_token,
    )


FAMILIES: dict[str, Family] = {family.name: _complete(family) for family in _rows()}
"""By name. Those with keys of their own are looked for in this order."""


def family_of(config: ModelConfig) -> Family:
    return FAMILIES[config.family]
