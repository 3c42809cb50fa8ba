"""Token Contrast (ToCo): Ru et al., "Token Contrast for Weakly-Supervised Semantic Segmentation", CVPR 2023.

An auxiliary classifier on an intermediate block gives a CAM that is less over-smoothed than the last block's. It says
which pairs of final patch tokens should agree (patch token contrast, PTC) and where an image is uncertain or
background, so that crops from there can be contrasted with the whole image (class token contrast, CTC).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from toco.backbones import Backbone
from toco.cam.activation import activation_maps, multi_scale_cams
from toco.cam.affinity import affinity
from toco.cam.labels import cam_to_pseudo_label, class_ids, scale_box
from toco.cam.par import ParConfig
from toco.cam.regions import crop, draw_keys, positive_crops, regions, sample_crop_corners
from toco.data import denormalise_255
from toco.heads.classifier import Classifier
from toco.heads.large_fov import LargeFov
from toco.heads.projection import ProjectionConfig, ProjectionHead, ema_update_
from toco.losses.classification import classification_loss
from toco.losses.ctc import class_token_contrast_loss
from toco.losses.dense_energy import DenseEnergyConfig, dense_energy_loss
from toco.losses.ptc import patch_token_contrast_loss
from toco.losses.segmentation import segmentation_loss
from toco.methods._method import Method, Term, autocast_device, compile_graphs, group_parameters
from toco.methods._toco_config import Config
from toco.types import Batch, Cams, Features, Prediction, StepOutput, present_classes


def build(config: Config, backbone: Backbone, num_foreground_classes: int) -> ToCo:
    """The method on ``backbone``.

    Raises:
        ValueError: The backbone has no block ``aux_block``, or none that can be the auxiliary one.
    """
    return ToCo(config, backbone, num_foreground_classes)


class _Outcome(NamedTuple):
    """What the tensors of a step give: losses, counts and, where the decoder learns, its logits and its label."""

    losses: dict[str, Tensor]
    counts: dict[str, Tensor]
    logits: Tensor | None
    label: Tensor | None


class ToCo(Method):
    """The network of ToCo and one training step of it."""

    config: Config

    def __init__(self, config: Config, backbone: Backbone, num_foreground_classes: int) -> None:
        super().__init__()
        aux_width = backbone.aux_width(config.aux_block)
        self.config = config
        self.num_foreground_classes = num_foreground_classes
        self.patch_size_px = backbone.patch_size_px
        self.backbone = backbone
        self.classifier = Classifier(backbone.width, num_foreground_classes)
        self.aux_classifier = Classifier(aux_width, num_foreground_classes)
        self.decoder = LargeFov(
            backbone.width, num_foreground_classes + 1, config.decoder_width, config.decoder_dilation
        )
        self.projection, self.teacher = (ProjectionHead(backbone.width, config.projection) for _ in range(2))
        self.teacher.load_state_dict(self.projection.state_dict())
        self.teacher.requires_grad_(False)

    def training_losses(self, batch: Batch, step: int, generator: torch.Generator) -> StepOutput:
        """Losses of one step.

        One pass over both global views serves the classifiers, the scale-1 CAM, the decoder, the student and the
        teacher, whose encoder is the student's: the values are those of the official five passes. Views that are only
        there for their class token take a cheaper last block, and maps are made for the classes in the image alone.
        Terms that do not count at this step are not computed, nor the CAM that only they would use.
        Source: official ``scripts/dist_train_voc_seg_neg.py``.
        """
        config = self.config
        weights = {
            "classification": 1.0,
            "aux_classification": config.aux_weight,
            "ptc": config.ptc.at(step),
            "ctc": config.ctc.at(step),
            "segmentation": config.segmentation.at(step),
            "energy": config.energy.at(step),
        }
        weights = {name: weight for name, weight in weights.items() if weight > 0}
        # The official teacher moves at the start of a step, towards the student that the previous step left.
        ema_update_(self.teacher, self.projection, config.ema_decay)
        keys = None
        if "ctc" in weights:
            size, device = _size(batch.images), batch.images.device
            keys = draw_keys(len(batch.images), size, config.local_crop_size_px, generator, batch.shard)
            # A copy from memory that is not pinned would wait for all that the device has still to do.
            keys = (keys.pin_memory() if device.type == "cuda" else keys).to(device, non_blocking=True)
        levels = None
        if "segmentation" in weights or "energy" in weights:
            # Not in the compiled part, which would round once where two operations round twice: levels are cut here.
            levels = denormalise_255(batch.images, truncate=True)
        outcome = self._outcome(
            batch.images,
            batch.second_view,
            batch.crop_source,
            batch.class_labels,
            batch.present,
            batch.valid_box,
            keys,
            levels,
            terms=frozenset(weights),
            from_aux_cam=step < config.aux_pseudo_labels_until_step,
        )
        losses, counts = outcome.losses, outcome.counts
        if outcome.logits is not None and outcome.label is not None and "energy" in weights:
            losses["energy"] = dense_energy_loss(
                denormalise_255(batch.images, truncate=False),
                outcome.logits,
                outcome.label,
                batch.valid_box,
                config.dense_energy,
            )
        return StepOutput(losses, weights, counts)

    def compile_step(self) -> None:
        """See the base class: all but the energy is one graph in each phase, which CUDA replays as one."""
        self._outcome = compile_graphs(self._outcome)  # type: ignore[method-assign]

    def _outcome(
        self,
        images: Tensor,
        second_view: Tensor | None,
        crop_source: Tensor | None,
        class_labels: Tensor,
        present: Tensor,
        valid_box: Tensor,
        keys: Tensor | None,
        levels: Tensor | None,
        *,
        terms: Collection[str],
        from_aux_cam: bool,
    ) -> _Outcome:
        """All losses among ``terms`` but the energy: tensors to tensors, without a look at any value.

        Args:
            images: See :class:`toco.types.Batch` for this and the five that follow.
            second_view: Second view.
            crop_source: What local crops are cut from.
            class_labels: Labels.
            present: Classes.
            valid_box: Image area.
            keys: Random keys of the local crops, if class tokens are to be contrasted.
            levels: ``images`` as whole levels 0 to 255, if the decoder learns.
            terms: Losses that count.
            from_aux_cam: The decoder learns from the auxiliary CAM.
        """
        config = self.config
        # A disabled context around all passes: weights that one of them casts are there for the next. The first pass is
        # one with gradients, as it has to be: what is cast without them would stay without them.
        with torch.autocast(autocast_device(images.device), enabled=False):
            views = [images] if keys is None or second_view is None else [images, second_view]
            main = self._encode(torch.cat(views), num_maps=len(images))

            # Classification: the last block's tokens, and the auxiliary block's.
            losses = {
                "classification": self.by_group(classification_loss, self.classifier(main.features), class_labels)
            }
            if "aux_classification" in terms:
                losses["aux_classification"] = self.by_group(
                    classification_loss, self.aux_classifier(main.aux_features), class_labels
                )
            counts: dict[str, Tensor] = {}

            # CAMs, those that a term of this step learns from.
            source = "aux_cam" if from_aux_cam else "cam"
            wanted = ["aux_cam"] if "ptc" in terms or keys is not None else []
            if levels is not None and source not in wanted:
                wanted.append(source)
            base = {"cam": main.features, "aux_cam": main.aux_features}
            cams = self._cams(images, config.cam_scales, config.cam_flip, wanted, present, base)
            present_labels = class_labels.gather(1, present)

            # Patch token contrast: which pairs of patches agree, by the auxiliary CAM.
            if "ptc" in terms:
                label = self._token_labels(cams["aux_cam"], present_labels, valid_box, _size(main.features))
                pairs = affinity(label)
                losses["ptc"] = self.by_group(patch_token_contrast_loss, main.features, pairs)
                counts["ptc_positive_pairs"] = (pairs == 1).float().mean()
                counts["ptc_negative_pairs"] = (pairs == 0).float().mean()

            # Class token contrast: local crops against whole images.
            if keys is not None and crop_source is not None:
                losses["ctc"], counts["ctc_positive_crops"] = self._class_token_contrast(
                    main.class_token, cams["aux_cam"], present_labels, crop_source, keys
                )

            # Segmentation: the decoder learns the refined CAM.
            if levels is None:
                return _Outcome(losses, counts, None, None)
            label = class_ids(self.config.label_rule().refine(levels, cams[source], present_labels, valid_box), present)
            logits = self._decode(main.features)
            logits = F.interpolate(logits, size=_size(images), mode="bilinear", align_corners=False)
            if "segmentation" in terms:
                losses["segmentation"] = self.by_group(segmentation_loss, logits, label)
            counts["pseudo_label_foreground"] = ((label > 0) & (label <= self.num_foreground_classes)).float().mean()
            return _Outcome(losses, counts, logits, label)

    def parameter_groups(self) -> dict[str, list[torch.nn.Parameter]]:
        """The official four groups; the frozen position embeddings and the teacher are in none."""
        heads = [self.classifier, self.aux_classifier, self.projection]
        return group_parameters(self.backbone, heads, self.decoder)

    def cams(
        self,
        images: Float[Tensor, "b 3 h w"],
        scales: Sequence[float],
        flip: bool,
        present: Int[Tensor, "b m"] | None = None,
    ) -> Cams:
        """See the base class."""
        return _as_cams(self._cams(images, scales, flip, ("cam", "aux_cam"), present))

    @torch.no_grad()
    def predict(
        self,
        images: Float[Tensor, "b 3 h w"],
        scales: Sequence[float],
        flip: bool,
        present: Int[Tensor, "b m"] | None = None,
    ) -> Prediction:
        """See the base class; one pass gives everything but the rescaled and mirrored CAMs."""
        with self.autocast(images.device):
            encoded, blocks = self.backbone.forward_blocks(images, self.config.aux_block)
        if self.autocast_dtype:
            encoded, blocks = _in_float32(encoded), [tokens.float() for tokens in blocks]
        base = {"cam": encoded.features, "aux_cam": encoded.aux_features}
        return Prediction(
            cams=_as_cams(self._cams(images, scales, flip, ("cam", "aux_cam"), present, base)),
            class_logits=self.classifier(encoded.features),
            segmentation_logits=self._decode(encoded.features),
            block_tokens=tuple(blocks),
        )

    @torch.no_grad()
    def segmentation_logits(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b s p q"]:
        """See the base class."""
        return self._decode(self._encode(images).features)

    @torch.no_grad()
    def pseudo_labels(
        self,
        images: Float[Tensor, "b 3 h w"],
        class_labels: Float[Tensor, "b k"],
        valid_box: Int[Tensor, "b 4"] | None = None,
    ) -> Int[Tensor, "b h w"]:
        """See the base class; from the final CAM."""
        present = present_classes(class_labels)
        cams = self._cams(images, self.config.cam_scales, self.config.cam_flip, ("cam",), present)
        levels = denormalise_255(images, truncate=True)
        label = self.config.label_rule().refine(levels, cams["cam"], class_labels.gather(1, present), valid_box)
        return class_ids(label, present)

    def _token_labels(self, aux_cam: Tensor, class_labels: Tensor, box: Tensor, grid: tuple[int, int]) -> Tensor:
        """Pseudo labels of the patches, from the auxiliary CAM."""
        config = self.config
        on_grid = F.interpolate(aux_cam, size=grid, mode="bilinear", align_corners=False)
        if config.token_box == "scaled":  # noqa: S105
            box = scale_box(box, _size(aux_cam), grid)
        # Numbers of the image's own classes: all that counts is whether two patches have the same.
        return cam_to_pseudo_label(on_grid, class_labels, config.low_threshold, config.high_threshold, box)

    def _class_token_contrast(
        self, class_tokens: Tensor, aux_cam: Tensor, class_labels: Tensor, crop_source: Tensor, keys: Tensor
    ) -> tuple[Tensor, Tensor]:
        """CTC of both global views and the local crops, and the fraction of crops that are positive."""
        config, num_images = self.config, len(aux_cam)
        region = regions(aux_cam, class_labels, config.low_threshold, config.high_threshold)
        corners = sample_crop_corners(region, keys, config.num_local_crops, config.local_crop_size_px)
        crops = crop(crop_source, corners, config.local_crop_size_px)
        positive = positive_crops(region, corners, config.local_crop_size_px, config.min_crop_region)
        # Both global views show the whole image, so they are positive by definition.
        is_positive = torch.cat([positive.new_ones(num_images, 2), positive], dim=1)

        local_tokens = self._encode(crops.flatten(0, 1), num_maps=0).class_token
        student = self.projection(torch.cat([class_tokens, local_tokens])).unflatten(0, (-1, num_images))
        with torch.no_grad():
            teacher = self.teacher(class_tokens.detach()).unflatten(0, (-1, num_images))

        def contrast(student: Tensor, teacher: Tensor, is_positive: Tensor) -> Tensor:
            by_view = student.transpose(0, 1).flatten(0, 1), teacher.transpose(0, 1).flatten(0, 1)
            return class_token_contrast_loss(*by_view, is_positive, config.temperature)

        loss = self.by_group(contrast, student.transpose(0, 1), teacher.transpose(0, 1), is_positive)
        return loss, positive.float().mean()

    @torch.no_grad()
    def _cams(
        self,
        images: Tensor,
        scales: Sequence[float],
        flip: bool,
        wanted: Collection[str],
        present: Tensor | None = None,
        base: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The ``wanted`` of ``cam`` and ``aux_cam``; the auxiliary one alone takes no block after its own."""
        if not wanted:
            return {}

        heads = {"cam": self.classifier, "aux_cam": self.aux_classifier}

        def maps_of(tokens: Mapping[str, Tensor]) -> Tensor:
            # All images, and after them their mirror images, of which the same classes are wanted.
            num_images = len(next(iter(tokens.values())))
            classes = None if present is None else present.repeat(num_images // len(present), 1)
            return torch.cat([activation_maps(tokens[name], heads[name].weight, classes) for name in wanted], dim=1)

        def forward(images: Tensor) -> Tensor:
            if "cam" not in wanted:
                return maps_of({"aux_cam": self._encode_aux(images)})
            encoded = self._encode(images)
            return maps_of({"cam": encoded.features, "aux_cam": encoded.aux_features})

        known = None if base is None else maps_of(base)
        cams = multi_scale_cams(forward, images, scales, flip, known)
        return dict(zip(wanted, cams.chunk(len(wanted), dim=1), strict=True))

    def _encode(self, images: Tensor, num_maps: int | None = None) -> Features:
        with self.autocast(images.device):
            features: Features = self.backbone(images, self.config.aux_block, num_maps)
        return _in_float32(features) if self.autocast_dtype else features

    def _encode_aux(self, images: Tensor) -> Tensor:
        with self.autocast(images.device):
            features: Tensor = self.backbone.aux_features(images, self.config.aux_block)
        return features.float() if self.autocast_dtype else features

    def _decode(self, features: Tensor) -> Tensor:
        with self.autocast(features.device):
            logits: Tensor = self.decoder(features)
        return logits.float() if self.autocast_dtype else logits


def _as_cams(maps: Mapping[str, Tensor]) -> Cams:
    return Cams(maps["cam"], {"aux_cam": maps["aux_cam"]})


def _in_float32(features: Features) -> Features:
    return Features(features.class_token.float(), features.features.float(), features.aux_features.float())


def _size(maps: Tensor) -> tuple[int, int]:
    return maps.shape[-2], maps.shape[-1]


__all__ = ["Config", "DenseEnergyConfig", "ParConfig", "ProjectionConfig", "Term", "ToCo", "build"]
