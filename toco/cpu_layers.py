"""Linear layers and attention that are faster than torch's on a CPU in float32.

Torch multiplies float32 matrices with MKL, which uses half the vector width on processors of AMD.
oneDNN, which torch also contains, uses the full width everywhere: products of the nano ViT take
half the time on an EPYC with AVX-512 (measured, torch 2.13). Torch's fused attention is made for
long sequences; up to :data:`SHORT` tokens a few batched products have a faster backward pass.

Values and gradients equal those of torch within rounding. :func:`is_eager_float32` says where these
functions apply: not on a GPU, and not under autocast, compilation or export. A second derivative is
refused.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SHORT = 128
"""Most tokens for which attention keeps its probabilities: up to 64 KB a head and image."""

# The operator that torch's own compiler uses for linear layers on a CPU.
_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(
    torch.ops.mkldnn, "_linear_pointwise"
)


class CpuLinear(nn.Linear):
    """A linear layer whose products run in oneDNN on a CPU in float32."""

    def forward(self, input: Float[Tensor, "*batch i"]) -> Float[Tensor, "*batch o"]:
        """Compute ``input @ weight.T + bias``."""
        return linear(input, self.weight, self.bias)


def linear(
    tokens: Float[Tensor, "*batch i"],
    weight: Float[Tensor, "o i"],
    bias: Float[Tensor, " o"] | None,
) -> Float[Tensor, "*batch o"]:
    """Compute ``tokens @ weight.T + bias``, with oneDNN on a CPU in float32."""
    if not _HAS_ONEDNN or not is_eager_float32(tokens, weight) or tokens.numel() == 0:
        return F.linear(tokens, weight, bias)
    output: Tensor = _Linear.apply(tokens, weight, bias)  # type: ignore[no-untyped-call]
    return output


def is_eager_float32(tokens: Tensor, weight: Tensor) -> bool:
    """Whether the functions of this module apply to ``tokens`` and ``weight``."""
    return (
        tokens.device.type == "cpu"
        and tokens.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch._C._get_tracing_state()
    )


def short_attention(
    packed: Float[Tensor, "b n packed"], num_heads: int, scale: float
) -> Float[Tensor, "b n c"]:
    """Let every token attend to all tokens of its image.

    Args:
        packed: Queries, keys and values, one after the other, each with all heads. At most
            :data:`SHORT` tokens, on a CPU in float32.
        num_heads: Number of heads.
        scale: Factor of the scores.
    """
    attended: Tensor = _ShortAttention.apply(packed, num_heads, scale)  # type: ignore[no-untyped-call]
    return attended


def _times_transposed(
    left: Float[Tensor, "*m k"], right: Float[Tensor, "n k"], bias: Tensor | None = None
) -> Float[Tensor, "*m n"]:
    """Compute ``left @ right.T + bias`` with oneDNN."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
    return product


class _Linear(torch.autograd.Function):
    """``tokens @ weight.T + bias``."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own
        tokens: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(tokens, weight)
        return _times_transposed(tokens, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        tokens, weight = ctx.saved_tensors
        needs_tokens, needs_weight, needs_bias = ctx.needs_input_grad
        flat = gradient.reshape(-1, gradient.shape[-1])
        of_tokens = of_weight = None
        if needs_tokens:
            of_tokens = _times_transposed(flat, weight.t()).view(tokens.shape)
        if needs_weight:
            # The sum runs over all tokens. oneDNN copies its left factor if that is transposed, so
            # the narrower matrix stands there.
            rows = tokens.reshape(-1, tokens.shape[-1])
            of_weight = (
                _times_transposed(rows.t(), flat.t()).t()
                if rows.shape[1] < flat.shape[1]
                else _times_transposed(flat.t(), rows.t())
            )
        return of_tokens, of_weight, flat.sum(0) if needs_bias else None


class _ShortAttention(torch.autograd.Function):
    """Attention from the packed queries, keys and values of all heads.

    The probabilities P = softmax(scale Q K^T) are kept. With G the gradient of P V, the gradient of
    V is P^T G, and that of the scores is S = P * (G V^T - sum(P * G V^T)).
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own
        packed: Float[Tensor, "b n packed"],
        num_heads: int,
        scale: float,
    ) -> Float[Tensor, "b n c"]:
        batch, n, _ = packed.shape
        parts = packed.view(batch, n, 3, num_heads, -1).permute(2, 0, 3, 1, 4).contiguous()
        query, key, value = parts.flatten(1, 2).unbind(0)
        # Base 2, because torch.exp2 is four times as fast as torch.exp on a CPU (measured, torch
        # 2.13). All steps are in place, in memory that is written once.
        scores = packed.new_empty(batch * num_heads, n, n)
        torch.baddbmm(
            scores, query, key.transpose(1, 2), beta=0, alpha=scale * math.log2(math.e), out=scores
        )
        scores.sub_(scores.amax(dim=-1, keepdim=True)).exp2_()
        probabilities = scores.mul_(scores.sum(dim=-1, keepdim=True).reciprocal_())
        ctx.save_for_backward(query, key, value, probabilities)
        ctx.scale = scale
        attended = torch.bmm(probabilities, value).view(batch, num_heads, n, -1)
        return attended.transpose(1, 2).flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        query, key, value, probabilities = ctx.saved_tensors
        batch, n, width = gradient.shape
        num_heads = len(query) // batch
        of_attended = gradient.view(batch, n, num_heads, -1).transpose(1, 2).flatten(0, 1)
        of_parts = query.new_empty(3, *query.shape)
        of_scores = torch._softmax_backward_data(
            torch.bmm(of_attended, value.transpose(1, 2)), probabilities, -1, torch.float32
        )
        scale = ctx.scale
        torch.baddbmm(of_parts[0], of_scores, key, beta=0, alpha=scale, out=of_parts[0])
        torch.baddbmm(
            of_parts[1], of_scores.transpose(1, 2), query, beta=0, alpha=scale, out=of_parts[1]
        )
        torch.bmm(probabilities.transpose(1, 2), of_attended, out=of_parts[2])
        by_token = of_parts.view(3, batch, num_heads, n, -1).permute(1, 3, 0, 2, 4)
        return by_token.reshape(batch, n, 3 * width), None, None
