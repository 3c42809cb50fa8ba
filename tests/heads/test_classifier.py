import pytest
import torch

from toco.cam.activation import activation_maps
from toco.heads.classifier import Classifier


def test_pools_channel_by_channel_then_classifies():
    classifier = Classifier(2, 1)
    with torch.no_grad():
        classifier.weight.copy_(torch.tensor([[1.0, 10.0]]))
    # The maxima of the two channels, 3 and 5, come from different patches.
    features = torch.tensor([[3.0, 1.0], [-2.0, 5.0]]).view(1, 2, 1, 2)
    assert classifier(features).item() == 53.0


def test_recorded_network_output(golden):
    """Logits and the map that is not pooled, from recorded tokens (no file holds those of the
    auxiliary block).
    """
    arrays = {name: torch.from_numpy(value) for name, value in golden("network_tiny").items()}
    classifier = Classifier(48, 20)
    classifier.load_state_dict({"weight": arrays["state/classifier.weight"].flatten(1)})
    features = arrays["fwd__fmap"]
    torch.testing.assert_close(classifier(features), arrays["fwd__cls"], rtol=1e-6, atol=5e-6)
    maps = activation_maps(features, classifier.weight)
    torch.testing.assert_close(maps, arrays["fwd__camonly_second_is_final"], rtol=1e-6, atol=5e-6)


def test_mirroring_the_features_changes_nothing_and_a_tie_has_one_gradient():
    classifier = Classifier(4, 3)
    features = torch.randn(2, 4, 3, 5)
    assert torch.equal(classifier(features.flip(-1)), classifier(features))
    constant = torch.ones(1, 4, 2, 2, requires_grad=True)
    classifier(constant).sum().backward()
    assert (constant.grad != 0).sum() == 4


def test_initialisation_is_that_of_a_1x1_convolution():
    torch.manual_seed(0)
    ours = Classifier(192, 80).weight
    theirs = torch.nn.Conv2d(192, 80, 1, bias=False).weight
    assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.02)
    assert ours.abs().max().item() == pytest.approx(192**-0.5, rel=0.01)
