"""Networks that know classes, and the classifier: what labels change, sample by sample, and what they leave alone."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from optcov.model import MLP, Classifier, UNet

NETWORKS = {"unet": (partial(UNet, channels=8), (1, 8, 8)), "mlp": (partial(MLP, channels=8), (3,))}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_label_is_one_vector_more_and_all_other_weights_are_those_of_the_seed(name: str):
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    plain = make(shape).state_dict()
    torch.manual_seed(0)
    network = make(shape, num_classes=4)
    assert network.state_dict().keys() - plain.keys() == {"label.weight"}
    assert len(network.label.weight) == 5  # the null label is the last
    assert all(torch.equal(network.state_dict()[key], value) for key, value in plain.items())
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    x_t, time = torch.randn(5, *shape), torch.full((5,), 300.0)
    labels = torch.tensor([0, 1, 4, 2, 0])
    output, features = network(x_t, time, labels)
    changed = network(x_t, time, torch.tensor([0, 1, 4, 3, 0]))[0]
    assert (output - changed).flatten(1).abs().amax(1).gt(1e-4).tolist() == [False, False, False, True, False]
    assert_close(network(x_t[3:4], time[3:4], labels[3:4])[0][0], output[3], rtol=1e-4, atol=1e-5)
    assert features.shape[:2] == (5, 8)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (5,)])
def test_the_classifier_sees_data_and_time_sample_by_sample(shape: tuple[int, ...]):
    torch.manual_seed(0)
    network = Classifier(shape, 4, channels=8).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    x_t, t = torch.randn(3, *shape), torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    logits = network(x_t, t)
    assert logits.shape == (3, 4)
    assert_close(network(x_t[1:2], t[1])[0], logits[1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(network(x_t, t.flip(0))[0], logits[0])
    assert not torch.allclose(network(x_t.flip(0), t)[0], logits[0])
    with pytest.raises(ValueError, match=r"guidance\.classifier\.channels must be even"):
        Classifier(shape, 4, channels=3)
