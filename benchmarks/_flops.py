"""Count the arithmetic of the matrix products and convolutions in a call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def count_flops(function: Callable[[], object]) -> int:
    """Count floating-point operations of matrix products and convolutions in one call.

    A backward pass of attention counts as two forward passes. A fused kernel computes the scores
    again, which is not counted. Each gradient of a convolution counts as a forward pass.
    """
    formulas = _ATTENTION | _CONVOLUTION | _LINEAR
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        function()
    return int(counter.get_total_flops())


def _attention(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: object, **__: object
) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(
    _gradient: Sequence[int],
    query: Sequence[int],
    key: Sequence[int],
    value: Sequence[int],
    *_: object,
    **__: object,
) -> int:
    return 2 * int(sdpa_flop_count(query, key, value))


# torch has no formulas for attention on the CPU, and its formulas for CUDA count recomputations.
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention
} | dict.fromkeys(
    (
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward,
        torch.ops.aten._scaled_dot_product_flash_attention_backward,
        torch.ops.aten._scaled_dot_product_efficient_attention_backward,
        torch.ops.aten._scaled_dot_product_cudnn_attention_backward,
    ),
    _attention_backward,
)


def _convolution_backward(
    gradient: Sequence[int],
    images: Sequence[int],
    weight: Sequence[int],
    _bias: object,
    _stride: object,
    _padding: object,
    _dilation: object,
    transposed: bool,
    _output_padding: object,
    _groups: object,
    output_mask: Sequence[bool],
    **__: object,
) -> int:
    positions = images if transposed else gradient
    # A weight has the input channels of one group.
    return 2 * math.prod(positions) * math.prod(weight[1:]) * sum(output_mask[:2])


# torch's formula takes each channel of a grouped convolution for one of all input channels.
_CONVOLUTION = {torch.ops.aten.convolution_backward: _convolution_backward}


def _linear(tokens: Sequence[int], weight: Sequence[int], *_: object, **__: object) -> int:
    return 2 * math.prod(tokens) * weight[0]


# The products of toco.cpu_layers.
_LINEAR = {torch.ops.mkldnn._linear_pointwise: _linear}
