"""Pretrain the nano ViT on generated scenes, as an ImageNet ViT is pretrained for VOC.

A ViT pretrained on ImageNet has three properties that matter to weak supervision. Patch tokens of
its first blocks tell what their patch looks like, and little of the class. Those of its middle
blocks are local and predict the class of their patch. Those of its last blocks are over-smoothed:
nearly the same for all patches. A nano ViT after a brief training has none of these properties.

This pretraining therefore asks for them, with image-level labels and pixels, and without masks. Its
blocks form stages (``stage_ends``). No gradient passes from a stage to the one before it; only the
clipping of the gradient's norm is common to all stages.

1. Patch tokens after the first stage reconstruct the pixels of their patch.
2. Patch tokens of the second stage predict the classes in the image: by groups of classes first,
   then each class. A prediction pools each channel's highest patches, so that tokens stay local.
3. The class token predicts the classes in the image. Patch tokens of a block of the third stage
   become alike (their similarity is maximised), and each of these tokens predicts the classes in
   the whole image, too.

Some scenes show no object, so that tokens of the background learn to predict nothing.
``stage_ends=[]`` lets all gradients through, and lists of tasks may be empty: these are controls.

Source of stages that train at the same time without gradients between them: Belilovsky et al.,
"Decoupled greedy learning of CNNs", ICML 2020.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from pydantic import Field, model_validator
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from toco import __version__
from toco.backbones import vit_nano
from toco.config import Config
from toco.data.shapes import SceneConfig, draw_scene
from toco.data.views.normalise import normalise
from toco.files import sha256, whole_file, write_text
from toco.metrics.smoothness import patch_similarity

FORMAT_VERSION = 1
_STREAM = 2
"""Second number of a scene's key. The benchmark's splits have 0 and 1, so they share no scene."""
_MAX_GRADIENT_NORM = 1.0
"""The usual clipping of ViT pretraining."""


class BlockTask(Config):
    """A loss of the patch tokens after a block.

    Attributes:
        block: 0-based block.
        weight: Weight of the loss.
    """

    block: int = Field(ge=0)
    weight: float = Field(default=1.0, gt=0)


class LabelTask(BlockTask):
    """What the patch tokens of a block predict together.

    Attributes:
        num_groups: Class ``c`` belongs to group ``c % num_groups``, and the tokens predict the
            groups in the image. 2 groups are the patterns of the parts (stripes, checks), 4 are the
            outlines of the bodies, 8 are the classes.
        num_patches: Each channel's mean over its highest ``num_patches`` patches makes the
            prediction. One patch is max pooling, which the most telling patch of an object
            satisfies; more patches ask for more of the object.
    """

    num_groups: int = Field(default=8, gt=0)
    num_patches: int = Field(default=1, gt=0)


class PretrainConfig(Config):
    """Settings of a pretraining.

    Attributes:
        backbone: The ViT, from random weights.
        scene: Content of the scenes. More parts are hidden than in the benchmark, so that the ViT
            learns the bodies, too; backgrounds tell less of the class; some scenes have no object.
        num_classes: Foreground classes.
        num_steps: Optimizer updates.
        batch_size: Scenes per update; every scene is used once.
        lr: Peak learning rate, after ``warmup_steps``; it falls to 0 as half a cosine.
        weight_decay: Weight decay of AdamW, on every parameter.
        stage_ends: 0-based last blocks of the stages before the last one; a stage gets no gradient
            from later ones.
        class_weight: Weight of the class token's loss.
        pixel_tasks: Blocks whose patch tokens reconstruct the pixels of their patch.
        label_tasks: Blocks whose patch tokens predict the classes in the image.
        smooth_tasks: Blocks whose patch tokens become alike.
        mixing_tasks: Blocks whose patch tokens each predict the classes in the whole image, so that
            a token of the background tells them, too.
        seed: Seed of the scenes and of the initial weights.
    """

    backbone: vit_nano.Config = vit_nano.Config(weights=None)
    scene: SceneConfig = SceneConfig(
        num_objects=(0, 3), context_percent=25, hidden_part_percent=50, num_decoys=(0, 2)
    )
    num_classes: int = Field(default=8, gt=0)
    num_steps: int = Field(default=1000, gt=0)
    batch_size: int = Field(default=48, gt=0)
    lr: float = Field(default=1.5e-3, gt=0)
    warmup_steps: int = Field(default=100, ge=0)
    weight_decay: float = Field(default=0.05, ge=0)
    stage_ends: tuple[int, ...] = (7, 9)
    class_weight: float = Field(default=2.0, gt=0)
    pixel_tasks: tuple[BlockTask, ...] = (BlockTask(block=7),)
    label_tasks: tuple[LabelTask, ...] = (
        LabelTask(block=8, num_groups=2, weight=0.5),
        LabelTask(block=9, num_groups=8, num_patches=10, weight=3.0),
    )
    smooth_tasks: tuple[BlockTask, ...] = (BlockTask(block=10, weight=1.5),)
    mixing_tasks: tuple[BlockTask, ...] = (BlockTask(block=10, weight=0.1),)
    seed: int = Field(default=9000, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _parts_fit(self) -> PretrainConfig:
        depth = self.backbone.depth
        tasks = (*self.pixel_tasks, *self.label_tasks, *self.smooth_tasks, *self.mixing_tasks)
        blocks = [*self.stage_ends, *(task.block for task in tasks)]
        if not all(0 <= block < depth for block in blocks):
            raise ValueError(
                f"stage_ends and tasks name the blocks {sorted(set(blocks))}; expected blocks of "
                f"the backbone, 0 to {depth - 1}"
            )
        if list(self.stage_ends) != sorted(set(self.stage_ends)) or depth - 1 in self.stage_ends:
            raise ValueError(
                f"stage_ends are {list(self.stage_ends)}; expected ascending blocks before the "
                f"last one, {depth - 1}, which ends the last stage"
            )
        num_patches = (self.backbone.image_size_px // self.backbone.patch_size_px) ** 2
        for task in self.label_tasks:
            if task.num_groups > self.num_classes or task.num_patches > num_patches:
                raise ValueError(
                    f"a task of block {task.block} has {task.num_groups} groups and "
                    f"{task.num_patches} patches; expected at most num_classes "
                    f"{self.num_classes} and {num_patches}"
                )
        if self.backbone.weights is not None:
            raise ValueError(
                "a pretraining starts from random weights: set backbone.weights to null"
            )
        if self.backbone.drop_path:
            raise ValueError(
                f"backbone.drop_path is {self.backbone.drop_path}, but a pretraining drops no "
                "paths; set it to 0"
            )
        return self


@dataclass(frozen=True, slots=True)
class PretrainResult:
    """The result of a pretraining.

    Attributes:
        weights: The safetensors file; a JSON file of the same name records how it was made.
        label_accuracy: Fraction of scenes whose classes the class token predicts exactly, over the
            last 20 batches.
        patch_similarity: Mean pairwise cosine of patch tokens after each block, on the last batch.
    """

    weights: Path
    label_accuracy: float
    patch_similarity: list[float]


def pretrain(
    config: PretrainConfig, weights: Path, *, command: str | None = None, progress: bool = True
) -> PretrainResult:
    """Train from random weights, and write ``weights`` and a JSON record beside it.

    Args:
        config: The pretraining.
        weights: A ``.safetensors`` file to write.
        command: The command line, for the record.
        progress: Show a progress bar.

    Raises:
        ValueError: The name of ``weights`` does not end in ``.safetensors``.
    """
    if weights.suffix != ".safetensors":
        raise ValueError(f"{weights}: expected a file name that ends in .safetensors.")
    model = _build(config)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.lr, weight_decay=config.weight_decay
    )
    steps = tqdm(range(config.num_steps), unit="step", disable=not progress, dynamic_ncols=True)
    correct: list[float] = []
    for step in steps:
        images, labels = draw_batch(config, step)
        images = normalise(images)
        output = model(images)
        loss = pretraining_loss(output, images, labels, config)
        optimizer.param_groups[0]["lr"] = learning_rate(config, step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), _MAX_GRADIENT_NORM)
        optimizer.step()
        correct.append(((output.class_logits > 0) == (labels > 0)).all(dim=1).float().mean().item())
        steps.set_postfix(loss=f"{loss.item():.3f}", exact=f"{_recent_mean(correct):.3f}")
    result = PretrainResult(
        weights,
        _recent_mean(correct),
        [patch_similarity(t.detach()).mean().item() for t in output.block_tokens],
    )
    _write(config, model.backbone.vit, result, command)
    return result


@dataclass(frozen=True, slots=True)
class PretrainOutput:
    """The output of one forward pass.

    Attributes:
        class_logits: Logits from the class token.
        pixels: Reconstructed pixels of every patch, for each of ``pixel_tasks``.
        label_logits: Logits of the groups, for each of ``label_tasks``.
        token_logits: Logits of every patch token, for each of ``mixing_tasks``.
        block_tokens: Patch tokens after every block, the last after the final norm.
    """

    class_logits: Float[Tensor, "b k"]
    pixels: list[Float[Tensor, "b n pixels"]]
    label_logits: list[Float[Tensor, "b _"]]
    token_logits: list[Float[Tensor, "b n k"]]
    block_tokens: list[Float[Tensor, "b n c"]]


class Pretraining(nn.Module):
    """The ViT with the heads of its pretraining, which are dropped afterwards."""

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__()
        self.backbone = vit_nano.build(config.backbone)
        # Position embeddings are frozen in trainings, as in the official encoder. Pretraining
        # learns them.
        self.backbone.vit.pos_embed.requires_grad_(True)
        width, num_pixels = config.backbone.width, 3 * config.backbone.patch_size_px**2
        self.config = config
        self.class_head = nn.Linear(width, config.num_classes)
        self.pixel_heads = nn.ModuleList(nn.Linear(width, num_pixels) for _ in config.pixel_tasks)
        self.label_heads = nn.ModuleList(
            nn.Linear(width, task.num_groups) for task in config.label_tasks
        )
        self.mixing_heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, config.num_classes))
            for _ in config.mixing_tasks
        )
        self._tokens: list[Tensor] = []
        for index, block in enumerate(self.backbone.vit.blocks):
            block.register_forward_hook(partial(self._after_block, index))

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> PretrainOutput:
        """Predict from the class token and from the patch tokens of the blocks with a task."""
        self._tokens.clear()
        final = self.backbone.vit.forward_features(self.backbone.renormalise(images))
        blocks = [tokens[:, 1:] for tokens in self._tokens]
        blocks[-1] = final[:, 1:]
        self._tokens.clear()
        pixel_tasks = zip(self.pixel_heads, self.config.pixel_tasks, strict=True)
        label_tasks = zip(self.label_heads, self.config.label_tasks, strict=True)
        mixing_tasks = zip(self.mixing_heads, self.config.mixing_tasks, strict=True)
        return PretrainOutput(
            class_logits=self.class_head(final[:, 0]),
            pixels=[head(blocks[task.block]) for head, task in pixel_tasks],
            label_logits=[
                head(mean_of_highest(blocks[task.block], task.num_patches))
                for head, task in label_tasks
            ],
            token_logits=[head(blocks[task.block]) for head, task in mixing_tasks],
            block_tokens=blocks,
        )

    def _after_block(self, index: int, _: nn.Module, __: object, tokens: Tensor) -> Tensor:
        """Keep the tokens for the tasks; the next stage gets them without a gradient."""
        self._tokens.append(tokens)
        return tokens.detach() if index in self.config.stage_ends else tokens


def pretraining_loss(
    output: PretrainOutput,
    images: Float[Tensor, "b 3 h w"],
    labels: Float[Tensor, "b k"],
    config: PretrainConfig,
) -> Float[Tensor, ""]:
    """Sum the weighted losses of all tasks.

    They are binary cross-entropies of labels, mean squared errors of normalised pixels, and 1 minus
    the mean pairwise cosine of patch tokens (:func:`toco.metrics.smoothness.patch_similarity`).
    """
    loss = config.class_weight * F.binary_cross_entropy_with_logits(output.class_logits, labels)
    patches = patches_of(images, config.backbone.patch_size_px)
    for task, pixels in zip(config.pixel_tasks, output.pixels, strict=True):
        loss = loss + task.weight * F.mse_loss(pixels, patches)
    for label_task, logits in zip(config.label_tasks, output.label_logits, strict=True):
        loss = loss + label_task.weight * F.binary_cross_entropy_with_logits(
            logits, group_labels(labels, label_task.num_groups)
        )
    for task in config.smooth_tasks:
        similarity = patch_similarity(output.block_tokens[task.block]).mean()
        loss = loss + task.weight * (1 - similarity)
    for task, logits in zip(config.mixing_tasks, output.token_logits, strict=True):
        loss = loss + task.weight * F.binary_cross_entropy_with_logits(
            logits, labels[:, None].expand_as(logits)
        )
    return loss


def patches_of(images: Float[Tensor, "b 3 h w"], patch_size_px: int) -> Float[Tensor, "b n pixels"]:
    """Cut images into their patches, row by row; each becomes a vector."""
    return F.unfold(images, patch_size_px, stride=patch_size_px).transpose(1, 2)


def mean_of_highest(tokens: Float[Tensor, "b n c"], num_patches: int) -> Float[Tensor, "b c"]:
    """Mean of every channel over its highest ``num_patches`` patches."""
    return tokens.topk(num_patches, dim=1).values.mean(dim=1)


def group_labels(labels: Float[Tensor, "b k"], num_groups: int) -> Float[Tensor, "b groups"]:
    """Whether an image has a class of each group.

    >>> group_labels(torch.tensor([[0.0, 0.0, 0.0, 1.0]]), 2)
    tensor([[0., 1.]])
    """
    groups = [labels[:, group::num_groups].amax(dim=1) for group in range(num_groups)]
    return torch.stack(groups, dim=1)


def draw_batch(
    config: PretrainConfig, step: int
) -> tuple[UInt8[Tensor, "b 3 h w"], Float[Tensor, "b k"]]:
    """Draw the scenes of one step and their image-level labels; steps share no scene."""
    first = step * config.batch_size
    size_px = config.backbone.image_size_px
    scenes = [
        draw_scene((config.seed, _STREAM, index), size_px, config.num_classes, config.scene)
        for index in range(first, first + config.batch_size)
    ]
    images = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2)
    present = [
        [bool((scene.mask == label).any()) for label in range(1, config.num_classes + 1)]
        for scene in scenes
    ]
    return images, torch.tensor(present, dtype=torch.float32)


def learning_rate(config: PretrainConfig, step: int) -> float:
    """Return the rate of ``step``: linear warm-up times half a cosine."""
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    return config.lr * warmup * 0.5 * (1 + math.cos(math.pi * step / config.num_steps))


def _build(config: PretrainConfig) -> Pretraining:
    # Initial values come from torch's global generator, whose state is restored afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return Pretraining(config)


def _recent_mean(values: list[float]) -> float:
    recent = values[-20:]
    return sum(recent) / len(recent)


def _write(
    config: PretrainConfig, vit: nn.Module, result: PretrainResult, command: str | None
) -> None:
    state = {name: tensor.contiguous() for name, tensor in vit.state_dict().items()}
    with whole_file(result.weights) as partial:
        save_file(state, partial)
    record = {
        "format_version": FORMAT_VERSION,
        "command": command,
        "seed": config.seed,
        "num_steps": config.num_steps,
        "config": config.model_dump(mode="json"),
        "sha256": sha256(result.weights),
        "versions": {"toco": __version__, "torch": torch.__version__},
        "label_accuracy": round(result.label_accuracy, 4),
        "patch_similarity": [round(value, 4) for value in result.patch_similarity],
    }
    write_text(result.weights.with_suffix(".json"), json.dumps(record, indent=2) + "\n")
