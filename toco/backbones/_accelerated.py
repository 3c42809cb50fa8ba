"""Let the linear layers and the attention of timm use :mod:`toco.cpu_layers`."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

import toco.backbones._torchvision  # noqa: F401 - must come before timm
from toco.cpu_layers import SHORT, CpuLinear, is_eager_float32, short_attention

from timm.layers.attention import Attention  # isort: skip


def accelerate(network: nn.Module) -> None:
    """Give every plain linear layer and every plain attention of ``network`` its faster class.

    Parameters, names and hooks stay. Subclasses of the two classes are left alone, because they
    compute something else.
    """
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = CpuLinear
        elif type(module) is Attention:
            module.__class__ = CpuAttention


class CpuAttention(Attention):
    """Attention whose backward pass is faster for few tokens on a CPU in float32."""

    def forward(
        self, x: Float[Tensor, "b n c"], attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Float[Tensor, "b n c"]:
        """Let every token attend to all tokens of its image."""
        plain = (
            attn_mask is None
            and not is_causal
            and self.gate is None
            and not (self.training and self.attn_drop.p)
            and isinstance(self.q_norm, nn.Identity)
            and isinstance(self.k_norm, nn.Identity)
        )
        if not plain or x.shape[1] > SHORT or not is_eager_float32(x, self.qkv.weight):
            output: Tensor = super().forward(x, attn_mask, is_causal)
            return output
        attended = short_attention(self.qkv(x), self.num_heads, self.scale)
        return self.proj_drop(self.proj(self.norm(attended)))  # type: ignore[no-any-return]
