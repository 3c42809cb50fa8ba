"""The interface of methods, and a base class for methods with CAMs of a classifier.

The training loop and the evaluation call only :class:`Method`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from toco.backbones import Backbone
from toco.cam.activation import multi_scale_cams
from toco.cam.labels import class_ids
from toco.cam.par import refine_pseudo_label
from toco.data.views.normalise import denormalise_255
from toco.heads.class_maps import ConvMaps
from toco.heads.classifier import Classifier
from toco.heads.large_fov import LargeFov
from toco.losses.dense_energy import dense_energy_loss
from toco.losses.segmentation import segmentation_loss
from toco.methods._cam_heads import CamHead, HeadOutput, LinearOutput, MapsOutput
from toco.methods._config import CamLabelsConfig, MethodConfig
from toco.tensors import Batch, Cams, Features, Prediction, StepOutput, present_classes

T = TypeVar("T")

_MAX_GRAPHS = 64
"""Limit on the graphs of a compiled step; a training has far fewer phases."""


class Method(nn.Module, ABC):
    """A network and the losses that train it.

    All state (a teacher, a memory) is parameters or buffers, so that checkpoints hold it. All ranks
    must change persistent buffers in the same way, from values of all ranks; a training checks it.

    Attributes:
        config: Settings of the method.
        num_foreground_classes: Classes without the background.
        patch_size_px: Side of the square of pixels behind one entry of :meth:`segmentation_logits`.
        autocast_dtype: Type that passes through the network are autocast to, or ``None``. Losses
            are always float32.
    """

    config: MethodConfig
    num_foreground_classes: int
    patch_size_px: int
    autocast_dtype: torch.dtype | None = None

    @abstractmethod
    def training_losses(self, batch: Batch, step: int, generator: torch.Generator) -> StepOutput:
        """Compute the named losses of one step (0-based), with their weights at that step."""

    @abstractmethod
    def compile_step(self) -> None:
        """Compile the computation of a step with torch; values stay the same up to rounding."""

    @abstractmethod
    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters in ``backbone``, ``backbone_norms``, ``heads`` and ``decoder``."""

    def layers(self) -> list[list[nn.Parameter]]:
        """Parameters of the backbone from the input to the output; empty where there is no order.

        ``optim.layer_decay`` and ``optim.frozen_layers`` need them. See
        :meth:`toco.backbones.Backbone.layers`.
        """
        return []

    @abstractmethod
    def cams(
        self,
        images: Float[Tensor, "b 3 h w"],
        scales: Sequence[float],
        flip: bool,
        present: Int[Tensor, "b m"] | None = None,
    ) -> Cams:
        """Compute multi-scale CAMs without gradient.

        ``present`` names the classes (0-based) for each image; ``None`` means all classes. The
        result holds the final CAM and those named by :meth:`MethodConfig.further_cams`. Callers may
        have disabled gradients. A method whose maps need gradients enables them inside, and returns
        maps without.
        """

    @abstractmethod
    def predict(
        self,
        images: Float[Tensor, "b 3 h w"],
        scales: Sequence[float],
        flip: bool,
        present: Int[Tensor, "b m"] | None = None,
    ) -> Prediction:
        """Predict all that an evaluation needs, including the CAMs of :meth:`cams`. No gradient."""

    @abstractmethod
    def segmentation_logits(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b s p q"]:
        """Logits of the decoder alone, on the patch grid, background first. No gradient.

        Raises:
            ValueError: The method has no decoder.
        """

    @abstractmethod
    def pseudo_labels(
        self,
        images: Float[Tensor, "b 3 h w"],
        class_labels: Float[Tensor, "b k"],
        valid_box: Int[Tensor, "b 4"] | None = None,
    ) -> Int[Tensor, "b h w"]:
        """Labels that the decoder would be trained on. No gradient.

        They are refined labels: 0 is background, 1..k are classes, 255 is void.
        """

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return the context for a pass through the network."""
        return torch.autocast(
            autocast_device(device),
            dtype=self.autocast_dtype,
            enabled=self.autocast_dtype is not None,
        )

    def by_group(self, loss: Callable[..., Tensor], *per_image: Tensor) -> Tensor:
        """Average ``loss`` over groups of ``loss_group_size`` images.

        Args:
            loss: Takes the tensors of a group, and returns a scalar.
            per_image: Tensors whose first axis is the image.
        """
        return mean_over_groups(loss, self.group_size(len(per_image[0])), *per_image)

    def group_size(self, num_images: int) -> int:
        """Images of a loss group in a batch of ``num_images``."""
        return self.config.loss_group_size or num_images


class DecoderOutput(NamedTuple):
    """What the decoder and its label give a step.

    Attributes:
        losses: The segmentation loss, at steps where it has a weight.
        counts: Numbers to log.
        logits: Logits of the decoder at the size of the images.
        label: The pseudo label.
    """

    losses: dict[str, Tensor]
    counts: dict[str, Tensor]
    logits: Tensor
    label: Tensor


class CamMethod(Method):
    """A backbone, a head that makes class scores and CAM, and a decoder.

    A subclass adds other parts and the losses.

    Attributes:
        aux_block: Block (0-based) whose features make ``aux_cam``; ``None`` is the last block, or
            no auxiliary CAM.
        classifier: Head of the final CAM: a ``Classifier`` or a subclass of it, or ``ConvMaps``.
        decoder: Segments the final patch tokens; ``None`` where the config has no decoder.
    """

    config: CamLabelsConfig
    aux_block: int | None = None
    decoder: LargeFov | None

    def __init__(
        self,
        config: CamLabelsConfig,
        backbone: Backbone,
        num_foreground_classes: int,
        classifier: CamHead | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.num_foreground_classes = num_foreground_classes
        self.patch_size_px = backbone.patch_size_px
        self.backbone = backbone
        self.classifier = (
            Classifier(backbone.width, num_foreground_classes) if classifier is None else classifier
        )

    def build_decoder(self) -> LargeFov:
        """Build a decoder with new weights, with the sizes in the config."""
        width, dilation = self.config.decoder_width, self.config.decoder_dilation
        return LargeFov(self.backbone.width, self.num_foreground_classes + 1, width, dilation)

    def layers(self) -> list[list[nn.Parameter]]:
        """See the base class."""
        return self.backbone.layers()

    def cam_heads(self) -> dict[str, CamHead]:
        """Head of each CAM, by the name of the CAM."""
        return {"cam": self.classifier}

    def head_input(self, name: str, features: Features) -> Tensor:
        """Tokens that the head of the CAM ``name`` gets."""
        return features.features if name == "cam" else features.aux_features

    def head_outputs(self, features: Features, names: Collection[str]) -> dict[str, HeadOutput]:
        """Apply the heads of the CAMs in ``names`` once, for logits and maps."""
        heads = self.cam_heads()
        return {
            name: self._head_output(heads[name], self.head_input(name, features)) for name in names
        }

    def cams(
        self,
        images: Float[Tensor, "b 3 h w"],
        scales: Sequence[float],
        flip: bool,
        present: Int[Tensor, "b m"] | None = None,
    ) -> Cams:
        """See the base class."""
        return _as_cams(self.cam_maps(images, scales, flip, self.cam_heads(), present))

    @torch.no_grad()
    def predict(
        self,
        images: Float[Tensor, "b 3 h w"],
        scales: Sequence[float],
        flip: bool,
        present: Int[Tensor, "b m"] | None = None,
    ) -> Prediction:
        """See the base class; one pass serves all but the rescaled and mirrored CAMs."""
        with self.autocast(images.device):
            features, blocks = self.backbone.forward_blocks(images, self.aux_block)
        if self.autocast_dtype:
            features, blocks = _in_float32(features), [tokens.float() for tokens in blocks]
        outputs = self.head_outputs(features, self.cam_heads())
        return Prediction(
            cams=_as_cams(self.cam_maps(images, scales, flip, self.cam_heads(), present, outputs)),
            class_logits=outputs["cam"].logits(),
            segmentation_logits=None if self.decoder is None else self.decode(features.features),
            block_tokens=tuple(blocks),
        )

    @torch.no_grad()
    def segmentation_logits(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b s p q"]:
        """See the base class."""
        return self.decode(self.encode(images).features)

    @torch.no_grad()
    def pseudo_labels(
        self,
        images: Float[Tensor, "b 3 h w"],
        class_labels: Float[Tensor, "b k"],
        valid_box: Int[Tensor, "b 4"] | None = None,
    ) -> Int[Tensor, "b h w"]:
        """See the base class; the labels are made from the final CAM."""
        present = present_classes(class_labels)
        maps = self.cam_maps(
            images, self.config.cam_scales, self.config.cam_flip, ("cam",), present
        )
        return self.label_of(
            maps["cam"],
            denormalise_255(images, truncate=True),
            class_labels.gather(1, present),
            present,
            valid_box,
        )

    @torch.no_grad()
    def cam_maps(
        self,
        images: Tensor,
        scales: Sequence[float],
        flip: bool,
        names: Collection[str],
        present: Tensor | None = None,
        outputs: Mapping[str, HeadOutput] | None = None,
    ) -> dict[str, Tensor]:
        """Compute multi-scale CAMs by name; for ``aux_cam`` alone later blocks are skipped.

        Args:
            images: Normalised images.
            scales: Sizes relative to the images' own.
            flip: Also compute the maps of the mirrored images.
            names: Names of the CAMs.
            present: Classes (0-based) to compute for each image, or ``None`` for all.
            outputs: Result of :meth:`head_outputs` for ``images``, if the caller has it already.
        """
        if not names:
            return {}
        heads = self.cam_heads()

        def maps_of(outputs: Mapping[str, HeadOutput], num_images: int) -> Tensor:
            # The batch may hold all images and then their mirror images, with the same classes.
            classes = None if present is None else present.repeat(num_images // len(present), 1)
            return torch.cat([outputs[name].maps(classes) for name in names], dim=1)

        def forward(images: Tensor) -> Tensor:
            if "cam" in names or self.aux_block is None:
                return maps_of(self.head_outputs(self.encode(images), names), len(images))
            with self.autocast(images.device):
                aux_features: Tensor = self.backbone.aux_features(images, self.aux_block)
            aux_features = aux_features.float() if self.autocast_dtype else aux_features
            return maps_of(
                {"aux_cam": self._head_output(heads["aux_cam"], aux_features)}, len(images)
            )

        base = None if outputs is None else maps_of(outputs, len(images))
        cams = multi_scale_cams(forward, images, scales, flip, base)
        return dict(zip(names, cams.chunk(len(names), dim=1), strict=True))

    def label_of(
        self, cam: Tensor, levels: Tensor, labels: Tensor, present: Tensor, valid_box: Tensor | None
    ) -> Tensor:
        """Make refined pseudo labels, as :meth:`pseudo_labels` returns them.

        Args:
            cam: Maps in [0, 1] of the classes in ``present``.
            levels: The images as levels 0 to 255.
            labels: For each class in ``present``, whether the image contains it.
            present: Classes (0-based) of each image.
            valid_box: Area of the image; pixels outside get 255.
        """
        return class_ids(
            refine_pseudo_label(levels / 255, cam, labels, valid_box, *self.config.label_rule()),
            present,
        )

    def encode(self, images: Tensor, num_maps: int | None = None) -> Features:
        """Pass images through the backbone once; the result is float32.

        ``num_maps`` is explained at :meth:`Backbone.forward`.
        """
        with self.autocast(images.device):
            features: Features = self.backbone(images, self.aux_block, num_maps)
        return _in_float32(features) if self.autocast_dtype else features

    def decode(self, features: Tensor) -> Tensor:
        """Logits of the decoder on the patch grid, in float32.

        Raises:
            ValueError: The method has no decoder.
        """
        if self.decoder is None:
            raise ValueError("The method has no decoder, since method.segmentation.weight is 0.")
        with self.autocast(features.device):
            logits: Tensor = self.decoder(features)
        return logits.float() if self.autocast_dtype else logits

    def decoder_weights(self, step: int) -> dict[str, float]:
        """Weights of the decoder's losses at ``step``."""
        config = self.config
        return {"segmentation": config.segmentation.at(step), "energy": config.energy.at(step)}

    def levels_of(self, images: Tensor, terms: Collection[str]) -> Tensor | None:
        """Image levels for the pseudo labels; ``None`` at steps where the decoder does not learn.

        Call it outside the compiled graph: a fused operation rounds once where two operations round
        twice, and the levels are truncated to whole numbers here.
        """
        if "segmentation" not in terms and "energy" not in terms:
            return None
        return denormalise_255(images, truncate=True)

    def decoder_output(
        self,
        features: Float[Tensor, "b c p q"],
        cam: Float[Tensor, "b m h w"],
        levels: Float[Tensor, "b 3 h w"],
        class_labels: Float[Tensor, "b k"],
        present: Int[Tensor, "b m"],
        valid_box: Int[Tensor, "b 4"],
        terms: Collection[str],
    ) -> DecoderOutput:
        """Segment the features, and compare the result with the refined CAM.

        Args:
            features: Final patch tokens.
            cam: CAM from which the decoder learns.
            levels: The images as levels 0 to 255.
            class_labels: Labels of the images.
            present: Classes of each image.
            valid_box: Area of each image.
            terms: Losses with a weight at this step.
        """
        label = self.label_of(cam, levels, class_labels.gather(1, present), present, valid_box)
        logits = F.interpolate(
            self.decode(features), size=levels.shape[-2:], mode="bilinear", align_corners=False
        )
        losses = {}
        if "segmentation" in terms:
            losses["segmentation"] = self.by_group(segmentation_loss, logits, label)
        is_foreground = (label > 0) & (label <= self.num_foreground_classes)
        counts = {"pseudo_label_foreground": is_foreground.float().mean()}
        return DecoderOutput(losses, counts, logits, label)

    def energy(self, batch: Batch, output: DecoderOutput) -> Tensor:
        """Dense energy of the decoder's logits, which no compiled graph contains."""
        return dense_energy_loss(
            denormalise_255(batch.images, truncate=False),
            output.logits,
            output.label,
            batch.valid_box,
            self.config.dense_energy,
        )

    def _head_output(self, head: CamHead, tokens: Tensor) -> HeadOutput:
        if not isinstance(head, ConvMaps):
            return LinearOutput(head, tokens)
        with self.autocast(tokens.device):
            maps: Tensor = head(tokens)
        return MapsOutput(head, maps.float() if self.autocast_dtype else maps)


def _as_cams(maps: Mapping[str, Tensor]) -> Cams:
    return Cams(maps["cam"], {name: cam for name, cam in maps.items() if name != "cam"})


def _in_float32(features: Features) -> Features:
    return Features(
        features.class_token.float(), features.features.float(), features.aux_features.float()
    )


def autocast_device(device: torch.device) -> str:
    """Name of the device type for autocast.

    Tensors on ``meta`` have shapes alone and no autocast, so they use that of the CPU.
    """
    return "cpu" if device.type == "meta" else device.type


def compile_graphs(function: Callable[..., T]) -> Callable[..., T]:
    """Compile ``function`` to one graph for each phase of the training.

    ``function`` must not read the value of a tensor.
    """
    # Each set of loss terms needs one graph for images of one class and one for images of several.
    # Torch allows 8, and counts the graphs of methods that this process trained before.
    torch.compiler.reset()
    torch._dynamo.config.recompile_limit = _MAX_GRAPHS
    return torch.compile(function, fullgraph=True, mode="reduce-overhead")


def mean_over_groups(loss: Callable[..., Tensor], size: int, *per_image: Tensor) -> Tensor:
    """Average ``loss`` over groups of ``size`` images; see :meth:`Method.by_group`."""
    groups = zip(*(tensor.split(size) for tensor in per_image), strict=True)
    return torch.stack([loss(*group) for group in groups]).mean()


def group_parameters(
    backbone: Backbone, heads: Sequence[nn.Module], decoder: nn.Module | None
) -> dict[str, list[nn.Parameter]]:
    """Return trainable parameters in the four official groups; frozen ones are in none."""
    norms = backbone.norm_parameters()
    in_norms = {id(parameter) for parameter in norms}
    groups = {
        "backbone": [p for p in backbone.parameters() if id(p) not in in_norms],
        "backbone_norms": norms,
        "heads": [p for head in heads for p in head.parameters()],
        "decoder": [] if decoder is None else list(decoder.parameters()),
    }
    return {name: [p for p in group if p.requires_grad] for name, group in groups.items()}
