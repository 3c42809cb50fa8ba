"""Projection head of the class tokens, and the moving average that updates the teacher's copy."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from toco.heads.config import ProjectionConfig


class WeightNormLinear(nn.Module):
    """Linear layer without bias that learns only the directions of its rows.

    Rows have length ``weight_g``, frozen at 1. ``weight_g`` stays a parameter because official
    checkpoints contain it.
    """

    weight_g: Float[Tensor, "out 1"]
    weight_v: Float[Tensor, "out c"]

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        bound = in_channels**-0.5  # torch's default for a linear layer
        self.weight_g = nn.Parameter(torch.ones(out_channels, 1), requires_grad=False)
        self.weight_v = nn.Parameter(torch.empty(out_channels, in_channels).uniform_(-bound, bound))

    def forward(self, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b out"]:
        """Apply the layer."""
        return F.linear(x, self.weight_g * self.weight_v / self.weight_v.norm(dim=1, keepdim=True))


class ProjectionHead(nn.Module):
    """DINO's head without its centring and softmax.

    It is an MLP with GELU, L2 normalisation and a weight-normed linear layer. Parameter names are
    the official ones (``mlp.0.weight`` ... ``last_layer.weight_v``).

    Args:
        in_channels: Width of the class token.
        config: The other sizes.

    Source: official model_seg_neg.py, after Caron et al., "Emerging Properties in Self-Supervised
    Vision Transformers".
    """

    def __init__(self, in_channels: int, config: ProjectionConfig) -> None:
        super().__init__()
        widths = [
            in_channels,
            *[config.hidden_width] * (config.num_layers - 1),
            config.bottleneck_width,
        ]
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            linear = nn.Linear(width_in, width_out)
            nn.init.trunc_normal_(linear.weight, std=0.02)  # as in DINO
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.last_layer = WeightNormLinear(config.bottleneck_width, config.output_width)

    def forward(self, class_token: Float[Tensor, "b c"]) -> Float[Tensor, "b out"]:
        """Project the class token; the contrast takes raw dot products of the results."""
        projection: Tensor = self.last_layer(F.normalize(self.mlp(class_token), dim=-1))
        return projection


@torch.no_grad()
def ema_update_(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """Set ``teacher`` to ``decay * teacher + (1 - decay) * student``, in place.

    ``decay`` is the weight of the OLD value (the paper calls it momentum). In a weight-normed layer
    the parameters are averaged, not the resulting weight, as in the official code.

    Raises:
        ValueError: The two modules do not have the same parameters, or the decay is outside [0, 1].
    """
    if not 0 <= decay <= 1:
        raise ValueError(
            f"The EMA decay is the weight of the old value, between 0 and 1, but is {decay}."
        )
    old, new = dict(teacher.named_parameters()), dict(student.named_parameters())
    if old.keys() != new.keys():
        raise ValueError(
            "Teacher and student must be copies of one module, "
            f"but only one of them has: {', '.join(sorted(old.keys() ^ new.keys()))}."
        )
    for name, parameter in old.items():
        parameter.mul_(decay).add_(new[name], alpha=1 - decay)
