"""Small twins of the families of networks that are backbones: timm's own constructors with few and
narrow blocks.
"""

import torch

import toco.backbones._torchvision  # noqa: F401 - must come before timm
from toco.backbones._swin import Swin
from toco.backbones._vit import ViT

from timm import create_model  # isort: skip

SMALL = {"depth": 3, "embed_dim": 48, "num_heads": 3}
SMALL_SWIN = {
    "depths": (1, 2, 2, 2),
    "embed_dim": 8,
    "num_heads": (1, 1, 2, 2),
    "window_size": 3,
    "drop_path_rate": 0,
}

FAMILIES = {
    "vit": ("vit_base_patch16_224", 64),
    "vit_patch8": ("vit_base_patch8_224", 32),  # also DINO, which is a plain ViT
    "deit_distilled": ("deit_base_distilled_patch16_224", 64),
    "deit3": ("deit3_base_patch16_224", 64),
    "dinov2": ("vit_base_patch14_dinov2", 70),
    "dinov2_registers": ("vit_base_patch14_reg4_dinov2", 70),
    "dinov3": ("vit_base_patch16_dinov3", 64),
    "dinov3_plus": ("vit_small_plus_patch16_dinov3", 64),
    "eva": ("eva_large_patch14_196", 56),
    "eva02": ("eva02_base_patch14_224", 56),
    "eva02_clip": ("eva02_base_patch16_clip_224", 64),
    "clip": ("vit_base_patch16_clip_224", 64),
    "clip_quickgelu": ("vit_base_patch16_clip_quickgelu_224", 64),
    "perception_encoder": ("vit_pe_core_base_patch16_224", 64),
    "rope": ("vit_small_patch16_rope_224", 64),
    "rope_mixed": ("vit_small_patch16_rope_mixed_224", 64),
    "swin": ("swin_tiny_patch4_window7_224", 96),
}
"""Name in timm, and the side of the images that the twin's positions are made for."""


def network(name, **options):
    """A twin, always with the same weights, far from the start, where layer scales are 1e-5 and
    class tokens 0.
    """
    model, image_size_px = FAMILIES[name]
    settings = (
        (SMALL_SWIN | {"strict_img_size": False})
        if name == "swin"
        else (SMALL | {"dynamic_img_size": True})
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        built = create_model(
            model, **(settings | {"num_classes": 0, "img_size": image_size_px} | options)
        ).eval()
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return built


def twin(name):
    """It as a backbone."""
    return Swin(network(name, always_partition=True)) if name == "swin" else ViT(network(name))
