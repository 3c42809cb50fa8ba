"""The interface of a method to the training loop, the evaluation and the verbs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from toco.backbones import Backbone
from toco.cam.par import ParConfig, refine_pseudo_label
from toco.config import Config, EntryConfig
from toco.types import Batch, Cams, ExtraView, Prediction, StepOutput

T = TypeVar("T")

_MAX_GRAPHS = 64
"""Of a compiled step: far more than there are phases of a training."""


class Term(Config):
    """One loss term: its weight, and the first step (0-based) at which it counts."""

    weight: float = Field(ge=0)
    start_step: int = Field(default=0, ge=0)

    def at(self, step: int) -> float:
        """Weight at ``step``."""
        return self.weight if step >= self.start_step else 0.0


class BilateralFilter(NamedTuple):
    """A filter of :mod:`toco.filters` that a method builds in its steps; distances are in pixels of its input."""

    filter_name: str
    sigma_rgb: float
    sigma_xy: float


class LabelRule(NamedTuple):
    """How a method makes pseudo labels of its CAM.

    Attributes:
        low_threshold: Background score that certain background wins with.
        high_threshold: Background score that certain foreground wins against.
        par: The refinement.
    """

    low_threshold: float
    high_threshold: float
    par: ParConfig

    def refine(
        self,
        levels: Float[Tensor, "b 3 h w"],
        cam: Float[Tensor, "b m h w"],
        class_labels: Float[Tensor, "b m"],
        valid_box: Int[Tensor, "b 4"] | None,
    ) -> Int[Tensor, "b h w"]:
        """Refined pseudo labels: 0 background, 1..m the classes of ``cam`` in their order, 255 uncertain.

        Args:
            levels: Images as levels 0 to 255, see :func:`toco.data.denormalise_255`.
            cam: Maps in [0, 1].
            class_labels: Which of these classes each image contains.
            valid_box: Area of the image; outside of it is 255.
        """
        return refine_pseudo_label(levels / 255, cam, class_labels, valid_box, *self)


class MethodConfig(EntryConfig):
    """Base of the configs of ``toco.methods``: all that a run asks of a method before it is built.

    Attributes:
        loss_group_size: Losses are computed over groups of this many images and averaged, so that
            sums over a batch do not depend on the number of GPUs; ranks share a batch by whole
            groups. ``null`` takes the whole batch as one group, which only one rank can train.
    """

    loss_group_size: int | None = Field(default=None, gt=0)

    @classmethod
    def small(cls) -> MethodConfig:
        """A config for a backbone of 3 blocks and images of 32 px, as the contract test builds."""
        return cls.model_validate({})

    def check(self, batch_size: int, crop_size_px: int) -> None:
        """Compare the settings with those of the run.

        Args:
            batch_size: Images of a step, of all ranks together.
            crop_size_px: Side of the training views.

        Raises:
            ValueError: They do not fit together.
        """
        if self.loss_group_size is not None and batch_size % self.loss_group_size:
            raise ValueError(
                f"batch_size {batch_size} is not a multiple of method.loss_group_size "
                f"{self.loss_group_size}; choose one that is, or set the group size to null"
            )

    def extra_views(self) -> frozenset[ExtraView]:
        """Views besides ``Batch.images`` that a training step reads; the loader makes no others."""
        return frozenset()

    def further_cams(self) -> dict[str, int | None]:
        """Names of the CAMs that the method makes besides the final one.

        Each comes with the block (0-based) whose tokens it is made of, or ``None`` where that is not a single block.
        """
        return {}

    def has_decoder(self) -> bool:
        """Whether the method segments; without a decoder it is evaluated by its CAMs alone."""
        return True

    def label_rule(self) -> LabelRule:
        """The rule that ``export-pseudo-labels`` and the demo start from.

        Raises:
            ValueError: The method's labels are not made of its CAM by two thresholds.
        """
        raise ValueError(
            f"The method {self.name!r} makes no pseudo labels of its CAM by a low and a high threshold; "
            "export-cams writes its CAMs, of which other programs can make labels."
        )

    def network_sides_px(self, crop_size_px: int) -> dict[str, float]:
        """Sides of the images that training passes through the network, by the setting that asks for them.

        The crop itself need not be named.
        """
        return {}

    def bilateral_filters(self) -> dict[str, BilateralFilter]:
        """Filters that training steps build, by the setting that describes them."""
        return {}

    def resolved(self, device: torch.device, crop_size_px: int) -> MethodConfig:
        """The config with every choice that depends on the machine made (``auto`` replaced by what it stands for)."""
        return self

    def late_step(self) -> int | None:
        """First step (0-based) at which terms join that had no part in the training until then, if any join late."""
        return None

    def inert_until(self, step: int) -> frozenset[str]:
        """Paths below ``method.`` that have no effect, to the bit, on the first ``step`` updates.

        Neither have they any on the optimizer's state after them, nor on evaluations and pictures until then.
        """
        return frozenset()


class Method(nn.Module, ABC):
    """A network and the losses that train it. State (a teacher, a memory) is parameters or buffers.

    Attributes:
        config: Settings of the method.
        num_foreground_classes: Classes without the background.
        patch_size_px: Side of the square of pixels that an entry of :meth:`segmentation_logits` stands for.
        autocast_dtype: Type that the network's passes are autocast to, or ``None``; losses are float32 always.
    """

    config: MethodConfig
    num_foreground_classes: int
    patch_size_px: int
    autocast_dtype: torch.dtype | None = None

    @abstractmethod
    def training_losses(self, batch: Batch, step: int, generator: torch.Generator) -> StepOutput:
        """The named losses of one step (0-based), with the weights that hold at it."""

    @abstractmethod
    def compile_step(self) -> None:
        """Have torch compile what a step computes; its values stay the same within rounding."""

    @abstractmethod
    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by group: ``backbone``, ``backbone_norms``, ``heads``, ``decoder``."""

    @abstractmethod
    def cams(
        self,
        images: Float[Tensor, "b 3 h w"],
        scales: Sequence[float],
        flip: bool,
        present: Int[Tensor, "b m"] | None = None,
    ) -> Cams:
        """Multi-scale CAMs of the classes ``present`` names (0-based, image by image), or of all. No gradient.

        Besides the final one there are those that the config names as :meth:`MethodConfig.further_cams`. Callers may
        have gradients disabled; a method whose maps need some enables them inside, and hands out none.
        """

    @abstractmethod
    def predict(
        self,
        images: Float[Tensor, "b 3 h w"],
        scales: Sequence[float],
        flip: bool,
        present: Int[Tensor, "b m"] | None = None,
    ) -> Prediction:
        """Everything an evaluation needs, with the CAMs that ``cams`` gives. No gradient."""

    @abstractmethod
    def segmentation_logits(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b s p q"]:
        """Logits of the decoder alone, on the patch grid, background first. No gradient.

        Raises:
            ValueError: There is no decoder.
        """

    @abstractmethod
    def pseudo_labels(
        self,
        images: Float[Tensor, "b 3 h w"],
        class_labels: Float[Tensor, "b k"],
        valid_box: Int[Tensor, "b 4"] | None = None,
    ) -> Int[Tensor, "b h w"]:
        """What the decoder would be trained on: refined labels, 0 background, 1..k, 255 void. No gradient."""

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context of a pass through the network."""
        return torch.autocast(
            autocast_device(device), dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None
        )

    def by_group(self, loss: Callable[..., Tensor], *per_image: Tensor) -> Tensor:
        """Mean of ``loss`` over groups of ``loss_group_size`` images.

        Args:
            loss: Takes the tensors of a group, and returns a scalar.
            per_image: Tensors whose first axis is the image.
        """
        size = self.config.loss_group_size or len(per_image[0])
        groups = zip(*(tensor.split(size) for tensor in per_image), strict=True)
        return torch.stack([loss(*group) for group in groups]).mean()


def autocast_device(device: torch.device) -> str:
    """What torch calls the device; tensors without values, of which only shapes are asked, have no autocast."""
    return "cpu" if device.type == "meta" else device.type


def compile_graphs(function: Callable[..., T]) -> Callable[..., T]:
    """Compile ``function``, which reads no value of a tensor, to one graph for each of its phases."""
    # Each set of terms is a graph, for images of one class and of several. Torch allows 8, and counts those of the
    # methods that this process trained before.
    torch.compiler.reset()
    torch._dynamo.config.recompile_limit = _MAX_GRAPHS
    return torch.compile(function, fullgraph=True, mode="reduce-overhead")


def group_parameters(
    backbone: Backbone, heads: Sequence[nn.Module], decoder: nn.Module | None
) -> dict[str, list[nn.Parameter]]:
    """The official four groups of trainable parameters; frozen ones are in none."""
    norms = backbone.norm_parameters()
    in_norms = {id(parameter) for parameter in norms}
    groups = {
        "backbone": [p for p in backbone.parameters() if id(p) not in in_norms],
        "backbone_norms": norms,
        "heads": [p for head in heads for p in head.parameters()],
        "decoder": [] if decoder is None else list(decoder.parameters()),
    }
    return {name: [p for p in group if p.requires_grad] for name, group in groups.items()}
