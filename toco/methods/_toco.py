"""The network of :mod:`toco.methods.toco` and its training step."""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor

from toco.backbones import Backbone
from toco.cam.affinity import affinity
from toco.cam.labels import cam_to_pseudo_label, scale_box
from toco.cam.regions import crop, draw_keys, positive_crops, regions, sample_crop_corners
from toco.heads.classifier import Classifier
from toco.heads.large_fov import LargeFov
from toco.heads.projection import ProjectionHead, ema_update_
from toco.losses.classification import classification_loss
from toco.losses.ctc import class_token_contrast_loss
from toco.losses.ptc import patch_token_contrast_loss
from toco.methods._cam_heads import CamHead
from toco.methods._method import autocast_device, compile_graphs, group_parameters
from toco.methods._rca_parts import Draws, fused_width
from toco.methods._rca_parts_method import Outcome, RcaPartsMethod
from toco.methods.toco import Config
from toco.tensors import Batch, StepOutput


class ToCo(RcaPartsMethod):
    """The network of ToCo and its training step."""

    config: Config

    classifier: Classifier
    decoder: LargeFov

    def __init__(self, config: Config, backbone: Backbone, num_foreground_classes: int) -> None:
        width, aux_width = backbone.width, backbone.aux_width(config.aux_block)
        classifier = Classifier(fused_width(config.aggregation, width), num_foreground_classes)
        super().__init__(config, backbone, num_foreground_classes, classifier)
        self.aux_block = config.aux_block
        self.aux_classifier = Classifier(aux_width, num_foreground_classes)
        self.decoder = self.build_decoder()
        self.projection, self.teacher = (ProjectionHead(width, config.projection) for _ in range(2))
        self.teacher.load_state_dict(self.projection.state_dict())
        self.teacher.requires_grad_(False)
        # Last, so that with the same classifier the parts above begin with the same weights.
        self.rca_parts = self.build_rca_parts(aux_width)

    def cam_heads(self) -> dict[str, CamHead]:
        """See the base class; the auxiliary classifier makes ``aux_cam``."""
        return {**super().cam_heads(), "aux_cam": self.aux_classifier}

    def training_losses(self, batch: Batch, step: int, generator: torch.Generator) -> StepOutput:
        """Compute the losses of one step.

        One pass over both global views serves the classifiers, the CAM at scale 1, the decoder, the
        student and the teacher. It can serve the teacher because student and teacher share the
        encoder. The values equal those of the five passes in the official code. Views of which
        only the class token is used take a cheaper last block. Maps are computed only for the
        classes in the image. A term without weight at this step is not computed, nor is a CAM
        that only such a term uses.

        Source: official ``scripts/dist_train_voc_seg_neg.py``.
        """
        config = self.config
        weights = {
            "classification": 1.0,
            "aux_classification": config.aux_weight,
            "ptc": config.ptc.at(step),
            "ctc": config.ctc.at(step),
            **self.decoder_weights(step),
            "region_contrast": config.region_contrast.at(step),
        }
        weights = {name: weight for name, weight in weights.items() if weight > 0}
        # Teacher: as in the official code, it moves at the start of a step, towards the student
        # after the previous step.
        ema_update_(self.teacher, self.projection, config.ema_decay)

        # Random keys of the local crops.
        keys = None
        if "ctc" in weights:
            size, device = _size(batch.images), batch.images.device
            keys = draw_keys(
                len(batch.images), size, config.local_crop_size_px, generator, batch.shard
            )
            # Pinned, because a copy from other memory would wait for all work queued on the device.
            keys = (keys.pin_memory() if device.type == "cuda" else keys).to(
                device, non_blocking=True
            )
        draws = None
        if self.rca_parts is not None:
            draws = self.rca_parts.begin_step(batch, step, generator, "region_contrast" in weights)

        # All losses but the energy, in the part that may be compiled; then the energy.
        outcome = self._outcome(
            batch.images,
            batch.second_view,
            batch.crop_source,
            batch.class_labels,
            batch.present,
            batch.valid_box,
            keys,
            draws,
            self.levels_of(batch.images, weights),
            terms=frozenset(weights),
            from_aux_cam=step < config.aux_pseudo_labels_until_step,
        )
        return self.finish_step(batch, outcome, weights)

    def compile_step(self) -> None:
        """See the base class. All but the energy becomes one graph for each phase."""
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
        draws: Draws | None,
        levels: Tensor | None,
        *,
        terms: Collection[str],
        from_aux_cam: bool,
    ) -> Outcome:
        """Compute all losses in ``terms`` but the energy.

        The function reads no value of a tensor, so that it can be compiled.

        Args:
            images: See :class:`toco.tensors.Batch` for this and the five that follow.
            second_view: Second global view.
            crop_source: Images to cut local crops from.
            class_labels: Image-level labels.
            present: Classes of each image.
            valid_box: Image area.
            keys: Random keys of the local crops; ``None`` at steps without CTC.
            draws: Random numbers of the region contrast; ``None`` at steps without it.
            levels: ``images`` as whole levels 0 to 255; ``None`` at steps where the decoder does
                not learn.
            terms: Losses with a weight at this step.
            from_aux_cam: Whether the decoder learns from the auxiliary CAM.
        """
        config = self.config
        # Passes: inside one disabled autocast context, later passes reuse the weights that the
        # first one cast. The first pass must have gradients, because weights cast without gradients
        # would be reused without them.
        with torch.autocast(autocast_device(images.device), enabled=False):
            views = [images] if keys is None or second_view is None else [images, second_view]
            main = self.encode(torch.cat(views), num_maps=len(images))
            outputs = self.head_outputs(main, self.cam_heads())

            # Classification: tokens of the last block, and of the auxiliary block.
            class_logits = outputs["cam"].logits()
            losses = {
                "classification": self.by_group(classification_loss, class_logits, class_labels)
            }
            if "aux_classification" in terms:
                losses["aux_classification"] = self.by_group(
                    classification_loss, outputs["aux_cam"].logits(), class_labels
                )
            counts: dict[str, Tensor] = {}

            # CAMs: only those from which a term of this step learns.
            source = "aux_cam" if from_aux_cam else "cam"
            cam_names = ["aux_cam"] if "ptc" in terms or keys is not None else []
            if levels is not None and source not in cam_names:
                cam_names.append(source)
            cams = self.cam_maps(
                images, config.cam_scales, config.cam_flip, cam_names, present, outputs
            )
            present_labels = class_labels.gather(1, present)

            # Patch token contrast: the auxiliary CAM says which pairs of patches agree.
            if "ptc" in terms:
                label = self._token_labels(
                    cams["aux_cam"], present_labels, valid_box, _size(main.features)
                )
                pairs = affinity(label)
                losses["ptc"] = self.by_group(patch_token_contrast_loss, main.features, pairs)
                counts["ptc_positive_pairs"] = (pairs == 1).float().mean()
                counts["ptc_negative_pairs"] = (pairs == 0).float().mean()

            # Class token contrast: local crops against whole images.
            if keys is not None and crop_source is not None:
                losses["ctc"], counts["ctc_positive_crops"] = self._class_token_contrast(
                    main.class_token, cams["aux_cam"], present_labels, crop_source, keys
                )

            # Region contrast: regions of the auxiliary classifier's maps against the memory.
            of_regions, update, region_counts = self.contrast_regions(
                main,
                outputs,
                class_logits,
                _size(images),
                class_labels,
                present,
                valid_box,
                draws,
            )
            losses |= of_regions
            counts |= region_counts

            # Segmentation: the decoder learns the refined CAM.
            if levels is None:
                return Outcome(losses, counts, None, update)
            decoder = self.decoder_output(
                main.features, cams[source], levels, class_labels, present, valid_box, terms
            )
            return Outcome(losses | decoder.losses, counts | decoder.counts, decoder, update)

    def parameter_groups(self) -> dict[str, list[torch.nn.Parameter]]:
        """The official four groups; frozen position embeddings and the teacher are in none."""
        heads = [self.classifier, self.aux_classifier, self.projection]
        groups = group_parameters(self.backbone, heads, self.decoder)
        return groups if self.rca_parts is None else self.rca_parts.join(groups)

    def _token_labels(
        self, aux_cam: Tensor, class_labels: Tensor, box: Tensor, grid: tuple[int, int]
    ) -> Tensor:
        """Make pseudo labels of the patches from the auxiliary CAM."""
        config = self.config
        on_grid = F.interpolate(aux_cam, size=grid, mode="bilinear", align_corners=False)
        if config.token_box == "scaled":  # noqa: S105
            box = scale_box(box, _size(aux_cam), grid)
        # Labels number the classes of this image alone. That is enough, because the affinity only
        # asks whether two patches have the same label.
        return cam_to_pseudo_label(
            on_grid, class_labels, config.low_threshold, config.high_threshold, box
        )

    def _class_token_contrast(
        self,
        class_tokens: Tensor,
        aux_cam: Tensor,
        class_labels: Tensor,
        crop_source: Tensor,
        keys: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Compute CTC over global views and local crops, and the fraction of positive crops."""
        config, num_images = self.config, len(aux_cam)
        region = regions(aux_cam, class_labels, config.low_threshold, config.high_threshold)
        corners = sample_crop_corners(
            region, keys, config.num_local_crops, config.local_crop_size_px
        )
        crops = crop(crop_source, corners, config.local_crop_size_px)
        positive = positive_crops(
            region, corners, config.local_crop_size_px, config.min_crop_region
        )

        # Both global views show the whole image, so they are positive by definition.
        is_positive = torch.cat([positive.new_ones(num_images, 2), positive], dim=1)

        local_tokens = self.encode(crops.flatten(0, 1), num_maps=0).class_token
        student = self.projection(torch.cat([class_tokens, local_tokens])).unflatten(
            0, (-1, num_images)
        )
        with torch.no_grad():
            teacher = self.teacher(class_tokens.detach()).unflatten(0, (-1, num_images))

        def contrast(student: Tensor, teacher: Tensor, is_positive: Tensor) -> Tensor:
            by_view = student.transpose(0, 1).flatten(0, 1), teacher.transpose(0, 1).flatten(0, 1)
            return class_token_contrast_loss(*by_view, is_positive, config.temperature)

        loss = self.by_group(
            contrast, student.transpose(0, 1), teacher.transpose(0, 1), is_positive
        )
        return loss, positive.float().mean()


def _size(maps: Tensor) -> tuple[int, int]:
    return maps.shape[-2], maps.shape[-1]
