import pytest
import torch

from toco.heads.aggregation import LinearAggregation, SoftmaxAggregation

NAMES = {
    "Q": "query",
    "K": "key",
    "V": "value",
    "aggre": "context",
    "concat_project": "project",
}


def official(case):
    aggregation = LinearAggregation(case["features"].shape[1]).double()
    aggregation.load_state_dict(
        {
            f"{NAMES[name]}.{kind}": case[f"weight/{name}.{kind}"]
            for name in NAMES
            for kind in ("weight", "bias")
        }
    )
    return aggregation


@pytest.mark.parametrize("name", ["small", "twenty_classes"])
def test_official_aggregation(golden_cases, name):
    case = golden_cases("rca_aggregation")[name]
    aggregation = official(case)
    features, centroids = case["features"].clone().requires_grad_(), case["centroids"]
    every = torch.ones(len(centroids), dtype=torch.bool)
    context = aggregation.context_of(features, centroids, every)
    close = {"atol": 1e-10, "rtol": 1e-10}
    torch.testing.assert_close(context, case["context"], **close)
    torch.testing.assert_close(aggregation.context(context), case["aggregated"], **close)
    fused = aggregation(features, centroids, every)
    torch.testing.assert_close(fused, case["fused"], **close)
    (fused * case["upstream"]).sum().backward()
    torch.testing.assert_close(features.grad, case["grad_features"], atol=1e-9, rtol=1e-9)
    for official_name, own_name in NAMES.items():
        for kind in ("weight", "bias"):
            torch.testing.assert_close(
                aggregation.get_submodule(own_name).get_parameter(kind).grad,
                case[f"grad/{official_name}.{kind}"],
                atol=1e-9,
                rtol=1e-9,
            )


@pytest.mark.parametrize("name", ["small", "twenty_classes"])
def test_the_papers_aggregation(golden_cases, name):
    case = golden_cases("rca_aggregation")[name]
    features, centroids = case["features"].clone().requires_grad_(), case["centroids"]
    fused = SoftmaxAggregation(features.shape[1], None)(
        features, centroids, torch.ones(len(centroids), dtype=torch.bool)
    )
    expected = torch.cat([case["features"], case["paper_context"]], dim=1)
    torch.testing.assert_close(fused, expected, atol=1e-10, rtol=1e-10)
    (fused * case["paper_upstream"]).sum().backward()
    torch.testing.assert_close(features.grad, case["paper_grad_features"], atol=1e-9, rtol=1e-9)


def test_convolutions_start_official_and_linear_layers_as_torch_starts_them():
    torch.manual_seed(0)
    aggregation = LinearAggregation(256)
    for name in ("query", "context", "project"):
        weight = aggregation.get_submodule(name).weight
        assert weight.std().item() == pytest.approx(0.01, rel=0.02), name
    for name in ("key", "value"):  # uniform within 1/sqrt(256)
        weight = aggregation.get_submodule(name).weight
        assert weight.abs().max() <= 1 / 16
        assert weight.std().item() == pytest.approx(1 / 16 / 3**0.5, rel=0.02), name


def test_cosines_ignore_lengths():
    features = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    centroids = torch.eye(4)[:, None]
    every = torch.ones(4, dtype=torch.bool)
    aggregation = SoftmaxAggregation(4, 0.1)
    context = aggregation.context_of(features, centroids, every)
    # The centroids are unit vectors, so the context is the softmax of the ten-fold cosines.
    expected = (torch.nn.functional.normalize(features, dim=1) / 0.1).softmax(dim=1)
    torch.testing.assert_close(context, expected)
    torch.testing.assert_close(aggregation.context_of(7 * features, centroids, every), context)


@pytest.mark.parametrize("temperature", [None, 0.1])
def test_classes_without_clusters_do_not_count(temperature):
    features = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    centroids = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(1))
    some = torch.tensor([True, False, True])
    for aggregation in (SoftmaxAggregation(4, temperature), LinearAggregation(4)):
        context = aggregation.context_of(features, centroids, some)
        other = centroids.clone()
        other[1] = 100.0
        torch.testing.assert_close(aggregation.context_of(features, other, some), context)
        none = aggregation.context_of(features, centroids, torch.zeros(3, dtype=torch.bool))
        assert none.abs().max() == 0
