"""The training step as the official iteration computes it, for comparison.

Its losses and gradients equal those of :class:`toco.train.step.TrainingStep`
(``tests/methods/test_plain_step.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from toco.backbones._accelerated import CpuAttention
from toco.cam.activation import normalise_cam
from toco.cam.affinity import affinity
from toco.cam.config import ParConfig
from toco.cam.labels import Region, cam_to_pseudo_label, ignore_outside, scale_box
from toco.cam.regions import regions
from toco.cpu_layers import CpuLinear
from toco.data.views.normalise import denormalise_255
from toco.heads.projection import ema_update_
from toco.losses.classification import classification_loss
from toco.losses.ctc import class_token_contrast_loss
from toco.losses.dense_energy import dense_energy_loss
from toco.losses.ptc import patch_token_contrast_loss
from toco.losses.segmentation import segmentation_loss
from toco.methods import toco
from toco.tensors import Batch, StepOutput
from toco.train.optim import groups_with_rates, set_lr
from toco.train.optim_config import AdamWConfig
from toco.types import IGNORE_INDEX


class PlainStep:
    """One update as the official iteration computes it, without reuse of any pass.

    It computes in float32, with explicit attention. The global views are encoded for the CAM
    (twice: upright and mirrored), for the classifiers and the decoder, for the teacher (with an
    unused graph) and for the student. The decoder also runs inside the CAM passes. The maps of all
    classes are resized to pixels. Crops are cut image by image on the host. PAR runs once for each
    threshold, each time with a new affinity. All terms are computed at all steps, with weight zero
    before their first step. Every loss is read from the device at every step.

    The losses, the normalisation of the CAM and the lattice are those of this library, because they
    equal the official ones.

    Args:
        method: Settings and weights. Give a copy: its attention is made explicit.
        optim: Settings of the optimizer, torch's AdamW with its default implementation.
        num_steps: Length of the training, for the learning rate.
        energy: Whether the energy term is computed.
    """

    def __init__(
        self, method: toco.ToCo, optim: AdamWConfig, num_steps: int, *, energy: bool
    ) -> None:
        self.network = method
        self._config, self._optim, self._num_steps, self._energy = (
            method.config,
            optim,
            num_steps,
            energy,
        )
        for module in method.backbone.modules():
            # Torch's own layers instead of ours.
            if isinstance(module, CpuLinear | CpuAttention):
                module.__class__ = type(module).__base__  # type: ignore[assignment]
            if hasattr(module, "fused_attn"):
                module.fused_attn = False  # type: ignore[assignment]
        groups: list[dict[str, Any]] = [
            {"params": group["params"], "peak_lr": group["peak_lr"]}
            for group in groups_with_rates(method, optim)
        ]
        self._optimizer = torch.optim.AdamW(
            groups,
            lr=optim.lr,
            betas=optim.betas,
            eps=optim.epsilon,
            weight_decay=optim.weight_decay,
        )

    def __call__(self, batch: Batch, step: int) -> None:
        """Make one update with a batch on the host."""
        output = self.losses(batch, step, torch.Generator())
        self.backward(output)
        self.update(step)
        for loss in output.losses.values():
            loss.item()

    def backward(self, output: StepOutput) -> None:
        """Replace the gradients by those of the weighted sum of losses in ``output``."""
        self._optimizer.zero_grad()
        output.total.backward()

    def update(self, step: int) -> None:
        """Update the parameters at the learning rate of ``step``."""
        set_lr(self._optimizer, step, self._num_steps, self._optim)
        self._optimizer.step()

    def losses(self, batch: Batch, step: int, generator: torch.Generator) -> StepOutput:
        """Compute the losses of ``step`` and their weights, zero before a term's first step."""
        config, network = self._config, self.network
        device = network.classifier.weight.device
        if batch.second_view is None or batch.crop_source is None:
            raise ValueError(
                "Expected a batch with all three views; make the loader with its default "
                "extra_views."
            )
        images, second_view, class_labels, box = (
            tensor.to(device)
            for tensor in (batch.images, batch.second_view, batch.class_labels, batch.valid_box)
        )
        size = images.shape[-2], images.shape[-1]
        losses: dict[str, Tensor] = {}

        # CAM passes, regions and local crops.
        cam, aux_cam = self.cams(images)
        region = regions(aux_cam, class_labels, config.low_threshold, config.high_threshold)
        crops, positive = self.crops(region, batch.crop_source, generator)

        # Passes of classifiers and decoder, teacher, student, local crops.
        _, features, aux_features = self._encode(images)
        logits = network.decoder(features)
        ema_update_(network.teacher, network.projection, config.ema_decay)
        teacher_tokens, _, _ = self._encode(torch.cat([images, second_view]))
        teacher = network.teacher(teacher_tokens).detach()
        student_tokens, _, _ = self._encode(torch.cat([images, second_view]))
        local_tokens, _, _ = self._encode(crops.flatten(0, 1))

        # Classification, CTC, PTC.
        losses["classification"] = self._by_group(
            classification_loss, network.classifier(features), class_labels
        )
        losses["aux_classification"] = self._by_group(
            classification_loss, network.aux_classifier(aux_features), class_labels
        )
        student = network.projection(torch.cat([student_tokens, local_tokens]))
        by_image = (
            rows.unflatten(0, (-1, len(images))).transpose(0, 1) for rows in (student, teacher)
        )
        losses["ctc"] = self._by_group(self._contrast, *by_image, positive.to(device))
        grid = features.shape[-2], features.shape[-1]
        on_grid = F.interpolate(aux_cam, size=grid, mode="bilinear", align_corners=False)
        is_scaled = config.token_box == "scaled"  # noqa: S105 - no password
        token_box = scale_box(box, size, grid) if is_scaled else box
        thresholds = config.low_threshold, config.high_threshold
        pairs = affinity(cam_to_pseudo_label(on_grid, class_labels, *thresholds, token_box)).long()
        losses["ptc"] = self._by_group(patch_token_contrast_loss, features, pairs)
        source = aux_cam if step < config.aux_pseudo_labels_until_step else cam
        label = self.pseudo_label(images, source, class_labels, box)
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        losses["segmentation"] = self._by_group(segmentation_loss, logits, label)
        if self._energy:
            # The official filter always runs on the CPU.
            levels = denormalise_255(images, truncate=False)
            settings = config.dense_energy.model_copy(update={"filter_name": "lattice"})
            energy = dense_energy_loss(levels.cpu(), logits.cpu(), label.cpu(), box.cpu(), settings)
            losses["energy"] = energy.to(device)
        terms = {
            name: getattr(config, name).at(step)
            for name in ("ptc", "ctc", "segmentation", "energy")
        }
        weights = {"classification": 1.0, "aux_classification": config.aux_weight, **terms}
        return StepOutput(losses, {name: weights[name] for name in losses})

    def _encode(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode to class token and patch tokens of the last and the auxiliary block."""
        encoded, _ = self.network.backbone.forward_blocks(images, self._config.aux_block)
        return encoded.class_token, encoded.features, encoded.aux_features

    @torch.no_grad()
    def cams(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute CAM and auxiliary CAM of all classes."""
        network = self.network
        sums: dict[str, list[Tensor]] = {"cam": [], "aux_cam": []}
        for scale in (1.0, *(scale for scale in self._config.cam_scales if scale != 1.0)):
            size = tuple(int(scale * side) for side in images.shape[-2:])
            scaled = (
                F.interpolate(images, size=size, mode="bilinear", align_corners=False)
                if scale != 1.0
                else images
            )
            _, features, aux_features = self._encode(torch.cat([scaled, scaled.flip(-1)]))
            network.decoder(features)
            for name, tokens, head in (
                ("cam", features, network.classifier),
                ("aux_cam", aux_features, network.aux_classifier),
            ):
                maps = F.conv2d(tokens, head.weight[:, :, None, None])
                maps = F.interpolate(
                    maps, size=images.shape[-2:], mode="bilinear", align_corners=False
                )
                upright, mirrored = maps.chunk(2)
                sums[name].append(torch.maximum(upright, mirrored.flip(-1)).relu())
        cam, aux_cam = (normalise_cam(torch.stack(maps).sum(dim=0)) for maps in sums.values())
        return cam, aux_cam

    def crops(
        self, region: Tensor, source: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Cut local crops, crop-major, on the device; return them and which views are positive.

        The two global views are always positive.
        """
        config = self._config
        side = config.local_crop_size_px
        crops, positive = [], []
        for image, of_image in zip(source, region, strict=True):
            corners = random_corners(
                of_image.cpu(), config.num_local_crops, side, generator
            ).tolist()
            crops.append(torch.stack([image[:, y : y + side, x : x + side] for y, x in corners]))
            means = [
                float(of_image[y : y + side, x : x + side].sum()) / side**2 for y, x in corners
            ]
            positive.append([True, True, *(mean > config.min_crop_region for mean in means)])
        return torch.stack(crops, dim=1).to(region.device), torch.tensor(positive)

    def _contrast(self, student: Tensor, teacher: Tensor, is_positive: Tensor) -> Tensor:
        by_view = student.transpose(0, 1).flatten(0, 1), teacher.transpose(0, 1).flatten(0, 1)
        return class_token_contrast_loss(*by_view, is_positive, self._config.temperature)

    @torch.no_grad()
    def pseudo_label(
        self, images: Tensor, cams: Tensor, class_labels: Tensor, box: Tensor
    ) -> Tensor:
        """Compute the pseudo label image by image, with one PAR for each threshold."""
        config = self._config
        colours = denormalise_255(images, truncate=True) / 255
        size = images.shape[-2], images.shape[-1]
        small = [int(side * config.par.scale) for side in size]
        labels = []
        for image, cam, present in zip(colours[:, None], cams[:, None], class_labels, strict=True):
            classes = present.nonzero().flatten()
            # Index 0 is the background.
            ids = torch.cat([classes.new_zeros(1), classes + 1])
            small_image = F.interpolate(image, size=small, mode="bilinear", align_corners=False)
            small_cam = F.interpolate(
                cam[:, classes], size=small, mode="bilinear", align_corners=False
            )
            winners = []
            for background in (config.low_threshold, config.high_threshold):
                maps = F.pad(small_cam, (0, 0, 0, 0, 1, 0), value=background).softmax(dim=1)
                refined = refined_by_convolutions(small_image, maps, config.par)
                refined = F.interpolate(refined, size=size, mode="bilinear", align_corners=False)
                winners.append(ids[refined.argmax(dim=1)])
            against_low, against_high = winners
            label = torch.where(
                (against_high == 0) & (against_low != 0), IGNORE_INDEX, against_high
            )
            labels.append(label)
        return ignore_outside(torch.cat(labels), box)

    def _by_group(self, loss: Callable[..., Tensor], *per_image: Tensor) -> Tensor:
        """Average a loss over groups of images, which share a device in the official run."""
        size = self._config.loss_group_size or len(per_image[0])
        groups = zip(*(tensor.split(size) for tensor in per_image), strict=True)
        return torch.stack([loss(*group) for group in groups]).mean()


def random_corners(region: Tensor, num_crops: int, side: int, generator: torch.Generator) -> Tensor:
    """Draw corners of one image's crops from all centres that are not certain foreground."""
    margin = side // 2
    height, width = region.shape
    inner = region[margin : height - margin, margin : width - margin]
    candidates = (inner <= Region.UNCERTAIN).nonzero()
    if len(candidates) < num_crops:
        candidates = torch.ones_like(inner).nonzero()
    return candidates[torch.randperm(len(candidates), generator=generator)[:num_crops]]


def refined_by_convolutions(images: Tensor, maps: Tensor, par: ParConfig) -> Tensor:
    """Refine maps by PAR with one-hot convolutions and copied centres, ``b c h w`` to the same."""
    offsets = [offset for offset in product((-1, 0, 1), repeat=2) if offset != (0, 0)]
    kernel = images.new_zeros(len(offsets), 1, 3, 3)
    for index, (dy, dx) in enumerate(offsets):
        kernel[index, 0, 1 + dy, 1 + dx] = 1

    def neighbours(values: Tensor) -> Tensor:
        planes: Tensor = values.flatten(0, 1)[:, None]
        rings = [
            F.conv2d(
                F.pad(planes, (reach, reach, reach, reach), mode="replicate"),
                kernel,
                dilation=reach,
            )
            for reach in par.dilations
        ]
        stacked: Tensor = torch.cat(rings, dim=1).unflatten(0, values.shape[:2])
        return stacked

    neighbour_colours = neighbours(images)
    centre = images[:, :, None].repeat(1, 1, neighbour_colours.shape[2], 1, 1)
    spread = neighbour_colours.std(dim=2, keepdim=True).repeat(
        1, 1, neighbour_colours.shape[2], 1, 1
    )
    from_colour = -(
        (neighbour_colours - centre).abs() / (spread + 1e-8) / par.colour_weight
    ).square()

    ring = torch.tensor(offsets, dtype=images.dtype, device=images.device).norm(dim=1)
    distance = torch.cat([ring * reach for reach in par.dilations])
    from_position = -(distance / (distance.std() + 1e-8) / par.colour_weight).square()
    weights = from_colour.mean(dim=1, keepdim=True).softmax(dim=2)
    weights = weights + par.position_weight * from_position.softmax(dim=0)[:, None, None]
    for _ in range(par.iterations):
        maps = (neighbours(maps) * weights).sum(dim=2)
    return maps
