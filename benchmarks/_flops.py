"""Arithmetic of the matrix products and convolutions in a call, counted and not timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def count_flops(function: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions in one call of ``function``.

    A backward pass of attention counts as two forward ones; that a fused kernel computes the scores
    once more is no work of the step.
    """
    with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter:
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


# torch knows none for the CPU, and counts the recomputation in those for CUDA.
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
