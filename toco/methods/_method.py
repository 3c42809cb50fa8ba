"""What a method is to the training loop and to the evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from toco.config import Component
from toco.types import Batch, Cams, Prediction, StepOutput


class MethodConfig(Component):
    """Base of the configs of ``toco.methods``."""

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
        num_foreground_classes: Classes without the background.
        patch_size_px: Side of the square of pixels that an entry of :meth:`segmentation_logits` stands for.
        autocast_dtype: Type that the network's passes are autocast to, or ``None``; losses are float32 always.
    """

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
        """Multi-scale CAMs of the classes ``present`` names (0-based, image by image), or of all. No gradient."""

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
        """Logits of the decoder alone, on the patch grid, background first. No gradient."""

    @abstractmethod
    def pseudo_labels(
        self,
        images: Float[Tensor, "b 3 h w"],
        class_labels: Float[Tensor, "b k"],
        valid_box: Int[Tensor, "b 4"] | None = None,
    ) -> Int[Tensor, "b h w"]:
        """What the decoder would be trained on: refined labels, 0 background, 1..k, 255 void. No gradient."""
