import pytest
import torch
from torch.nn.functional import cosine_similarity

from toco.metrics.smoothness import patch_similarity


def test_similarity_equals_the_mean_over_all_pairs():
    tokens = torch.randn(3, 29, 7, generator=torch.Generator().manual_seed(0)) + 0.3
    for i in range(3):
        pairs = [
            cosine_similarity(tokens[i, a], tokens[i, b], dim=0)
            for a in range(29)
            for b in range(29)
            if a != b
        ]
        torch.testing.assert_close(
            patch_similarity(tokens)[i], torch.stack(pairs).mean(), atol=1e-6, rtol=1e-5
        )


def test_the_range_of_the_similarity():
    direction = torch.randn(1, 1, 5, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([0.1, 1.0, 30.0])[None, :, None]
    torch.testing.assert_close(patch_similarity(direction * lengths), torch.ones(1))
    torch.testing.assert_close(patch_similarity(torch.eye(4)[None]), torch.zeros(1))
    torch.testing.assert_close(
        patch_similarity(torch.tensor([[[1.0, 0], [-2, 0]]])), -torch.ones(1)
    )


def test_a_zero_token_has_similarity_zero_to_every_other():
    torch.testing.assert_close(
        patch_similarity(torch.tensor([[[1.0, 0], [1, 0], [0, 0]]])), torch.tensor([1 / 3])
    )


def test_half_precision_tokens_are_compared_in_single_precision():
    tokens = torch.randn(1, 784, 192, generator=torch.Generator().manual_seed(2)).bfloat16()
    torch.testing.assert_close(patch_similarity(tokens), patch_similarity(tokens.float()))


def test_one_patch_has_no_pair():
    with pytest.raises(ValueError, match="at least two patches"):
        patch_similarity(torch.ones(1, 1, 4))
