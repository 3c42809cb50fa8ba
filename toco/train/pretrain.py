"""Pretrain the nano ViT on generated scenes, as an ImageNet ViT is pretrained for VOC.

A ViT pretrained on ImageNet has two properties that matter to weak supervision. The patch tokens of
its middle blocks are local and predict the class of their patch. Those of its last blocks are
over-smoothed: nearly the same for all patches. A nano ViT after a brief training has neither
property; with the class token alone supervised, its last block's patch similarity stays near 0.5.
Three losses therefore train for both properties, by image-level labels only and without masks:

- the class token predicts the classes in the image;
- so does the maximum over the patch tokens of one middle block (the *local* block);
- so does every single patch token of the last blocks (the *smooth* blocks), so that they become
  alike.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
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


class PretrainConfig(Config):
    """Settings of a pretraining.

    Attributes:
        backbone: The ViT, from random weights.
        scene: Content of the scenes. More parts are hidden than in the benchmark, so that the ViT
            learns the bodies, too; backgrounds tell less of the class.
        num_classes: Foreground classes.
        num_steps: Optimizer updates.
        batch_size: Scenes per update; every scene is used once.
        lr: Peak learning rate, after ``warmup_steps``; it falls to 0 as half a cosine.
        weight_decay: Weight decay of AdamW, on every parameter.
        local_block: 0-based block whose maximum over patch tokens predicts the labels.
        smooth_weights: Weights of the loss over single patch tokens, for the last block, the one
            before it, ...
        seed: Seed of the scenes and of the initial weights.
    """

    backbone: vit_nano.Config = vit_nano.Config(weights=None)
    scene: SceneConfig = SceneConfig(context_percent=25, hidden_part_percent=50)
    num_classes: int = Field(default=8, gt=0)
    num_steps: int = Field(default=700, gt=0)
    batch_size: int = Field(default=48, gt=0)
    lr: float = Field(default=1.5e-3, gt=0)
    warmup_steps: int = Field(default=100, ge=0)
    weight_decay: float = Field(default=0.05, ge=0)
    local_block: int = Field(default=9, ge=0)
    smooth_weights: tuple[float, ...] = (1.0, 1.0)
    seed: int = Field(default=9000, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _parts_fit(self) -> PretrainConfig:
        depth = self.backbone.depth
        if self.local_block >= depth or len(self.smooth_weights) > depth:
            raise ValueError(
                f"local_block and smooth_weights reach beyond the {depth} blocks of the backbone"
            )
        if self.backbone.weights is not None:
            raise ValueError(
                "a pretraining starts from random weights: set backbone.weights to null"
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
        output = model(normalise(images))
        loss = pretraining_loss(output, labels, config)
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
        [patch_similarity(t).mean().item() for t in output.block_tokens],
    )
    _write(config, model.backbone.vit, result, command)
    return result


@dataclass(frozen=True, slots=True)
class PretrainOutput:
    """The output of one forward pass.

    Attributes:
        class_logits: Logits from the class token.
        local_logits: Logits from the maximum over the patch tokens of the local block.
        smooth_logits: Logits from every patch token of the last block, the one before it, ...
        block_tokens: Patch tokens after every block, the last after the final norm; detached.
    """

    class_logits: Float[Tensor, "b k"]
    local_logits: Float[Tensor, "b k"]
    smooth_logits: list[Float[Tensor, "b n k"]]
    block_tokens: list[Float[Tensor, "b n c"]]


class Pretraining(nn.Module):
    """The ViT with the heads of its pretraining, which are dropped afterwards."""

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__()
        self.backbone = vit_nano.build(config.backbone)
        # Position embeddings are frozen in trainings, as in the official encoder. Pretraining
        # learns them.
        self.backbone.vit.pos_embed.requires_grad_(True)
        width, num_classes = config.backbone.width, config.num_classes
        self.local_block = config.local_block
        self.class_head = nn.Linear(width, num_classes)
        self.local_head = nn.Linear(width, num_classes)
        # The last block's tokens come from the final norm; the heads of earlier blocks have a norm.
        self.smooth_heads = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width) if before_last else nn.Identity(), nn.Linear(width, num_classes)
            )
            for before_last in range(len(config.smooth_weights))
        )

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> PretrainOutput:
        """Predict the labels from the class token, the local block and the smooth blocks."""
        final, blocks = self.backbone.vit.forward_intermediates(
            self.backbone.renormalise(images), output_fmt="NLC"
        )
        blocks[-1] = final[:, 1:]
        return PretrainOutput(
            class_logits=self.class_head(final[:, 0]),
            local_logits=self.local_head(blocks[self.local_block].amax(dim=1)),
            smooth_logits=[
                head(blocks[-1 - index]) for index, head in enumerate(self.smooth_heads)
            ],
            block_tokens=[tokens.detach() for tokens in blocks],
        )


def pretraining_loss(
    output: PretrainOutput, labels: Float[Tensor, "b k"], config: PretrainConfig
) -> Float[Tensor, ""]:
    """Sum the binary cross-entropies of all predictions, those of smooth blocks weighted."""
    loss = F.binary_cross_entropy_with_logits(output.class_logits, labels)
    loss = loss + F.binary_cross_entropy_with_logits(output.local_logits, labels)
    for weight, logits in zip(config.smooth_weights, output.smooth_logits, strict=True):
        loss = loss + weight * F.binary_cross_entropy_with_logits(
            logits, labels[:, None].expand_as(logits)
        )
    return loss


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
