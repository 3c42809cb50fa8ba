import numpy as np
import torch

from toco.heads.clustering import cluster


def inertia(points, centroids):
    return torch.cdist(points, centroids).amin(dim=1).square().sum().item()


def clustered(points, num_centroids, num_starts=10, seed=0):
    return cluster(
        points[None],
        torch.ones(1, len(points), dtype=torch.bool),
        num_centroids,
        num_starts,
        300,
        np.random.default_rng(seed),
    )[0]


def test_clear_groups_are_found_exactly(golden_cases):
    case = golden_cases("rca_clustering")["separated"]
    centroids = clustered(case["memory"], 10)
    rows = sorted(centroids.tolist())
    torch.testing.assert_close(
        torch.tensor(rows, dtype=torch.float64), case["centroids_sorted"], atol=1e-9, rtol=1e-9
    )
    assert abs(inertia(case["memory"], centroids) - case["inertia"].item()) < 1e-8


def test_noise_is_clustered_as_well_as_by_scikit_learn(golden_cases):
    case = golden_cases("rca_clustering")["noise"]
    largest = case["inertia_best_of_10"].max().item()
    for seed in range(5):
        assert inertia(case["memory"], clustered(case["memory"], 10, seed=seed)) <= 1.02 * largest


def test_sets_are_independent_and_entries_that_do_not_count_change_nothing():
    points = torch.randn(3, 12, 4, generator=torch.Generator().manual_seed(0))
    counts = torch.ones(3, 12, dtype=torch.bool)
    counts[1, 8:] = False
    counts[2] = False
    first = cluster(points, counts, 3, 4, 50, np.random.default_rng(1))
    points[1, 8:] = 1e6
    points[2] = -1e6
    again = cluster(points, counts, 3, 4, 50, np.random.default_rng(1))
    torch.testing.assert_close(first, again, atol=0, rtol=0)
    assert first[1].abs().max() < 10
    assert first[2].abs().max() == 0


def test_fewer_points_than_centroids_give_copies():
    points = torch.tensor([[[1.0], [5.0], [0.0]]])
    counts = torch.tensor([[True, True, False]])
    centroids = cluster(points, counts, 4, 2, 10, np.random.default_rng(0))
    assert sorted(set(centroids.flatten().tolist())) == [1.0, 5.0]


def test_the_same_numbers_give_the_same_centroids():
    points = torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(0))
    counts = torch.ones(2, 30, dtype=torch.bool)
    results = [cluster(points, counts, 5, 3, 50, np.random.default_rng(7)) for _ in range(2)]
    assert torch.equal(*results)
