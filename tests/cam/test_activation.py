import pytest
import torch
import torch.nn.functional as F

from toco.cam.activation import activation_maps, multi_scale_cams, normalise_cam


def test_activation_maps_are_a_1x1_convolution():
    features, weight = torch.randn(2, 6, 3, 5), torch.randn(4, 6)
    torch.testing.assert_close(
        activation_maps(features, weight), F.conv2d(features, weight[:, :, None, None])
    )


def test_activation_at_one_patch_by_hand():
    features = torch.tensor([1.0, -2.0]).view(1, 2, 1, 1)
    assert activation_maps(features, torch.tensor([[3.0, 1.0], [0.0, 2.0]])).flatten().tolist() == [
        1.0,
        -4.0,
    ]


def test_maps_of_some_classes_are_those_of_all():
    features, weight = torch.randn(2, 6, 3, 5), torch.randn(4, 6)
    everything = activation_maps(features, weight)
    some = activation_maps(features, weight, torch.tensor([[0, 3], [1, 2]]))
    torch.testing.assert_close(some[0], everything[0, [0, 3]])
    torch.testing.assert_close(some[1], everything[1, [1, 2]])


def test_normalise_by_hand():
    maps = torch.tensor([[[[2.0, 4.0, 6.0]], [[5.0, 5.0, 5.0]]]], dtype=torch.float64)
    result = normalise_cam(maps)
    torch.testing.assert_close(
        result[0, 0, 0], torch.tensor([0, 2 / 4.00001, 4 / 4.00001], dtype=torch.float64)
    )
    assert result[0, 1].abs().max() == 0


class Network:
    """Stands in for a network: two linear maps of 4 x 4 patches, not symmetric under mirroring."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(4, 3, 4, 4, generator=generator, dtype=torch.float64)
        self.sizes: list[tuple[int, ...]] = []

    def __call__(self, images):
        self.sizes.append(tuple(images.shape))
        return F.conv2d(images, self.weight.to(images.dtype), stride=4)


@pytest.fixture
def images():
    return torch.randn(
        2, 3, 16, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )


def cams_by_the_book(network, images, scales, flip):
    """The definition in the goldens' words, one pass at a time."""
    total = torch.zeros(2, 4, 16, 24, dtype=torch.float64)
    for scale in [1.0] + [s for s in scales if s != 1.0]:
        size = (int(16 * scale), int(24 * scale))
        resized = F.interpolate(images, size, mode="bilinear", align_corners=False)
        cam = F.interpolate(network(resized), (16, 24), mode="bilinear", align_corners=False)
        if flip:
            mirror = F.interpolate(
                network(resized.flip(-1)), (16, 24), mode="bilinear", align_corners=False
            )
            cam = torch.max(cam, mirror.flip(-1))
        total += F.relu(cam)
    total -= total.amin((2, 3), keepdim=True)
    return total / (total.amax((2, 3), keepdim=True) + 1e-5)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("scales", [(1.0,), (1.0, 0.5, 1.5), (0.5, 1.3), ()])
def test_multi_scale_cams_by_the_book(images, scales, flip):
    cams = multi_scale_cams(Network(), images, scales, flip)
    torch.testing.assert_close(cams, cams_by_the_book(Network(), images, scales, flip))


@pytest.mark.parametrize("flip", [True, False])
def test_known_base_saves_a_pass_and_changes_nothing(images, flip):
    network = Network()
    base = network(images)
    network.sizes.clear()
    with_base = multi_scale_cams(network, images, (1.0, 0.5), flip, base)
    assert network.sizes == ([(2, 3, 16, 24), (4, 3, 8, 12)] if flip else [(2, 3, 8, 12)])
    torch.testing.assert_close(with_base, multi_scale_cams(Network(), images, (1.0, 0.5), flip))


def test_mirrored_image_gives_mirrored_cam(images):
    cams = multi_scale_cams(Network(), images, (1.0, 0.5, 1.5), flip=True)
    mirrored = multi_scale_cams(Network(), images.flip(-1), (1.0, 0.5, 1.5), flip=True)
    torch.testing.assert_close(mirrored, cams.flip(-1))
    assert cams.amin() == 0
    assert 0.9 < cams.amax() < 1


def test_cams_have_the_dtype_of_the_images_not_of_the_network(images):
    network = Network()
    cams = multi_scale_cams(
        lambda batch: network(batch).bfloat16(), images.float(), (1.0,), flip=True
    )
    assert cams.dtype == torch.float32


def test_scales_must_be_positive(images):
    with pytest.raises(
        ValueError, match=r"positive factors of the image size, but got \[1.0, 0.0\]"
    ):
        multi_scale_cams(Network(), images, [1.0, 0.0], flip=True)
