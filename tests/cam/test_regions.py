import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toco.cam.regions import crop, draw_keys, positive_crops, regions, sample_crop_corners
from toco.types import Shard


def corners_of(region, num_crops, size, generator, shard=Shard()):
    keys = draw_keys(len(region), region.shape[1:], size, generator, shard)
    return sample_crop_corners(region, keys.to(region.device), num_crops, size)


def test_every_recorded_region(golden_cases):
    for case, a in golden_cases("cam_to_label").items():
        _, high, low, _ = a["thr_bkg_high_low_ignore"].tolist()
        result = regions(a["cam"], a["cls_label"], low, high)
        assert torch.equal(result, a["roi_mask"].to(torch.uint8)), case


def test_every_recorded_crop_and_flag(golden_cases):
    cases = golden_cases("crop_from_roi_neg")
    assert len(cases) == 10
    for case, a in cases.items():
        num_crops, size, _ = a["crop_num_size_seed"].tolist()
        crops = crop(a["images"], a["corners_yx"], size)
        assert torch.equal(crops.transpose(0, 1), a["crops_b_num_c_s_s"]), case
        is_positive = positive_crops(a["roi_mask"], a["corners_yx"], size, min_mean_region=0.2)
        assert is_positive.shape == (len(a["images"]), num_crops)
        assert torch.equal(is_positive, a["flags"][:, 2:].bool()), case


def test_recorded_corners_are_among_the_possible_ones(golden_cases):
    """The official corners and ours come from the same candidates: as
    many, and at the same places.
    """
    for case, a in golden_cases("crop_from_roi_neg").items():
        num_crops, size, _ = a["crop_num_size_seed"].tolist()
        for index, region in enumerate(a["roi_mask"]):
            num_candidates = int(a[f"perm{index}_length"])
            # Asking for every candidate in turn gives exactly the candidates.
            generator = torch.Generator().manual_seed(0)
            if (region[size // 2 : -(size // 2), size // 2 : -(size // 2)] <= 1).sum() >= num_crops:
                drawn = corners_of(region[None], num_candidates, size, generator)[0]
                possible = {tuple(corner) for corner in drawn.tolist()}
                assert len(possible) == num_candidates, case
                assert {tuple(corner) for corner in a["corners_yx"][index].tolist()} <= possible, (
                    case
                )
                margin = size // 2
                assert all(region[y + margin, x + margin] <= 1 for y, x in possible), case


def test_regions_by_hand():
    cam = torch.tensor([0.0, 0.25, 0.26, 0.69, 0.7, 1.0]).view(1, 1, 1, 6)
    assert regions(cam, torch.ones(1, 1), 0.25, 0.7).tolist() == [[[0, 0, 1, 1, 2, 2]]]
    assert regions(cam, torch.zeros(1, 1), 0.25, 0.7).tolist() == [[[0, 0, 0, 0, 0, 0]]]


def test_corners_are_a_uniform_ordered_sample_without_replacement():
    """Ten candidates, three crops: each of the 720 ordered triples should come up equally often."""
    num_draws, num_triples = 36_000, 720
    region = torch.full((9, 9), 2)
    candidates = [(2, 2), (2, 6), (3, 3), (3, 4), (4, 2), (4, 5), (5, 5), (6, 2), (6, 4), (6, 6)]
    for y, x in candidates:
        region[y, x] = (y + x) % 2  # background and uncertain alike
    region[0, 0] = 0  # too near to the border to be a centre
    images = region.expand(num_draws, 9, 9)
    corners = corners_of(images, 3, 4, torch.Generator().manual_seed(1))
    centres = [tuple(tuple(c) for c in triple) for triple in (corners + 2).tolist()]
    counts: dict[object, int] = {}
    for triple in centres:
        assert len(set(triple)) == 3
        assert set(triple) <= set(candidates)
        counts[triple] = counts.get(triple, 0) + 1
    expected = num_draws / num_triples
    observed = torch.tensor(
        [*counts.values(), *[0] * (num_triples - len(counts))], dtype=torch.float64
    )
    chi_square = ((observed - expected) ** 2 / expected).sum().item()
    # 719 degrees of freedom: mean 719, standard deviation sqrt(2 * 719) = 38.
    assert abs(chi_square - 719) < 4 * 38


def test_fewer_candidates_than_crops_means_anywhere():
    region = torch.full((400, 8, 8), 2)
    region[:, 4, 4] = region[:, 4, 5] = 0  # two candidates, three crops
    corners = corners_of(region, 3, 4, torch.Generator().manual_seed(2))
    counts = torch.zeros(4, 4)
    for y, x in corners.flatten(0, 1).tolist():
        counts[y, x] += 1
    assert counts.sum() == 1200
    # 75 expected at each of the 16 places, candidate or not; standard deviation below 8.5.
    assert (counts - 75).abs().max() < 4 * 8.5


def test_exactly_as_many_candidates_as_crops_takes_them_all():
    region = torch.full((1, 8, 8), 2)
    region[0, 3, 3:6] = 1
    corners = corners_of(region, 3, 4, torch.Generator().manual_seed(3))
    assert sorted(corners[0].tolist()) == [[1, 1], [1, 2], [1, 3]]


def test_the_generator_decides_the_corners():
    region = torch.zeros(2, 20, 24, dtype=torch.uint8)
    first, again, other = (
        corners_of(region, 5, 6, torch.Generator().manual_seed(seed)) for seed in (4, 4, 5)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_crops_do_not_depend_on_the_number_of_processes():
    region = torch.zeros(4, 20, 24, dtype=torch.uint8)
    whole = corners_of(region, 5, 6, torch.Generator().manual_seed(4))
    parts = [
        corners_of(region[:2], 5, 6, torch.Generator().manual_seed(4), Shard(rank, 2))
        for rank in (0, 1)
    ]
    assert torch.equal(torch.cat(parts), whole)


@given(st.integers(1, 9), st.integers(9, 14), st.integers(9, 14))
def test_crops_stay_inside_and_show_what_slices_show(size, height, width):
    generator = torch.Generator().manual_seed(size)
    images = torch.rand(2, 3, height, width, generator=generator)
    region = torch.randint(0, 3, (2, height, width), generator=generator)
    corners = corners_of(region, 1, size, generator)
    crops = crop(images, corners, size)
    for index, (y, x) in enumerate(corners[:, 0].tolist()):
        assert 0 <= y <= height - size
        assert 0 <= x <= width - size
        assert torch.equal(crops[0, index], images[index, :, y : y + size, x : x + size])


def test_rows_of_crops_are_crop_major():
    images = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    crops = crop(images, torch.zeros(2, 5, 2, dtype=torch.int64), 2)
    assert crops.flatten(0, 1)[:, 0, 0, 0].tolist() == [0, 1] * 5


def test_sure_foreground_counts_double():
    region = torch.zeros(1, 10, 10, dtype=torch.uint8)
    region[0, 0, :10] = 2  # mean 0.2: not more than the limit
    corner = torch.zeros(1, 1, 2, dtype=torch.int64)
    assert positive_crops(region, corner, 10, min_mean_region=0.2).tolist() == [[False]]
    region[0, 1, 0] = 1
    assert positive_crops(region, corner, 10, min_mean_region=0.2).tolist() == [[True]]
    assert positive_crops(region, corner, 10, min_mean_region=0.3).tolist() == [[False]]


def test_crops_that_do_not_fit_are_refused():
    with pytest.raises(
        ValueError, match="8 different crops of 96 px do not fit into an image of 96 x 120 px"
    ):
        corners_of(torch.zeros(1, 96, 120, dtype=torch.int64), 8, 96, torch.Generator())


def test_does_not_wait_for_the_device():
    """Tensors without data: whatever reads a value on the host, or shapes
    a tensor by one, raises.
    """
    region = regions(
        torch.zeros(2, 3, 20, 24, device="meta"), torch.zeros(2, 3, device="meta"), 0.25, 0.7
    )
    corners = corners_of(region, 5, 6, torch.Generator())
    assert positive_crops(region, corners, 6, min_mean_region=0.2).shape == (2, 5)
    assert crop(torch.zeros(2, 3, 20, 24, device="meta"), corners, 6).shape == (5, 2, 3, 6, 6)
