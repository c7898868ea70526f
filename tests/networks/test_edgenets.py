"""Every published ESPNetv2 against EdgeNets' own PyTorch code, in float64.

By hand, with PyTorch and a checkout of https://github.com/sacmehta/EdgeNets at
2b232d3f7fb60658755dad1ebca0ffc895cc795e, in which the published files lie:

    EDGENETS=checkout python -m pytest tests/networks/test_edgenets.py -n 0
"""

import argparse
import os
import pathlib

import numpy as np
import pytest

from dag_jax import networks
from dag_jax.networks import espnetv2
from dag_jax.weights import published
from tests.networks.test_espnetv2 import NAMES, SIZE, compiled, look

torch = pytest.importorskip("torch", reason="PyTorch, of the torch extra, is not installed")
CHECKOUT = os.environ.get("EDGENETS")
if not CHECKOUT:
    pytest.skip("EDGENETS names no checkout of EdgeNets", allow_module_level=True)
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", NAMES)
def test_published_weights_give_what_edgenets_gives(name, monkeypatch):
    monkeypatch.syspath_prepend(CHECKOUT)
    segmentation = pytest.importorskip("model.segmentation.espnetv2")
    folder = pathlib.Path(CHECKOUT, "model/segmentation/model_zoo/espnetv2")
    (file,) = published.ORIGINS[name].files
    network = networks.load(name, checkpoint=folder / file.name)
    module = network.module.clone(size=SIZE)

    data = "city" if "city" in name else "pascal"
    options = argparse.Namespace(s=module.width, channels=3, num_classes=1000)
    options.model_width = options.model_height = 224
    theirs = segmentation.ESPNetv2Segmentation(options, module.num_classes, data)
    theirs.load_state_dict(torch.load(folder / file.name, map_location="cpu"))
    theirs.double().eval()

    distances = []
    for noise in np.random.default_rng(0).uniform(-1e-4, 1e-4, (3, *SIZE, 3)):
        image = (look() + noise).astype(np.float32)
        (_, scores), gradient = compiled(module)(image, network.parameters)
        exact, slope = in_double(theirs, image)
        assert np.abs(scores - exact).max() <= 1e-5 * np.ptp(exact)
        distances.append(np.abs(gradient - slope).max() / np.ptp(slope))
    # In some image rounding takes PReLUs from one slope to the other.
    assert min(distances) <= 1e-3, distances


def in_double(module, image):
    """Return the scores of a module of PyTorch, and the gradient of the sum that is recorded."""
    image = torch.tensor(image, dtype=torch.float64, requires_grad=True)
    x = (image / 255 - torch.tensor(espnetv2.MEAN)) / torch.tensor(espnetv2.STD)
    scores = module(x.permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    weights = np.sin(np.linspace(-1, 1, scores.numel())).reshape(scores.shape)
    (scores * torch.tensor(weights)).sum().backward()
    return scores.detach().numpy(), image.grad.numpy()
