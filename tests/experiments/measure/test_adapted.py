"""What an adapted network is measured against computes the same gradient."""

import os

import jax
import numpy as np
import pytest
from flax import nnx

from experiments.measure import adapted, foreign, foreign_keras, iterations

SIDE = 16


def assert_same_gradient(attacked, control, *, atol=1e-6):
    assert attacked.case == "named, 16 px" and attacked.image.shape == (SIDE, SIDE, 3)
    _, ours = iterations.forward_and_gradient(*attacked.arguments)
    theirs = control()
    theirs = theirs[1] if isinstance(theirs, tuple) else theirs
    assert theirs.shape == (SIDE, SIDE, 3) and np.abs(theirs).max() > 0
    np.testing.assert_allclose(ours, theirs, atol=atol * np.abs(theirs).max())
    row = iterations.engine(attacked, iterations=3, pairs=1, control=control)
    assert row["case"] == attacked.case and row["engine_ms"] > 0 and row["iterations"] == 3


@pytest.mark.parametrize(
    ("queries", "options"),
    [
        (False, {"output": "out", "classes": foreign.CLASSES}),
        (True, {"output": ("boxes", "logits")}),
    ],
)
def test_the_control_of_pytorch_is_the_gradient_of_an_iteration(queries, options):
    torch = pytest.importorskip("torch", reason="PyTorch, of the torch extra, is not installed")

    class Named(torch.nn.Module):
        """Scores of a map in a dict, or boxes and logits of queries."""

        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 5, 4, stride=4)

        def forward(self, pixels):
            maps = torch.nn.functional.gelu(self.layer(pixels))
            logits = maps.flatten(2).transpose(1, 2)
            return {"boxes": logits[..., :4], "logits": logits} if queries else {"out": maps}

    torch.manual_seed(0)
    module = Named().eval()
    attacked, control = adapted.of_torch("named", module, options, size=SIDE, via="callback")
    assert attacked.targets.labels.size == 16
    assert_same_gradient(attacked, control)


@pytest.mark.parametrize("scores", [{"classes": foreign.CLASSES}, {"output": "logits"}])
def test_the_control_of_keras_is_the_gradient_of_an_iteration(scores):
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras", reason="Keras, of the keras extra, is not installed")
    if keras.backend.backend() != "jax":
        pytest.skip("KERAS_BACKEND is not jax")
    keras.utils.set_random_seed(0)
    pixels = keras.Input((SIDE, SIDE, 3))
    maps = keras.layers.Conv2D(5, 3, padding="same", activation="gelu")(pixels)
    module = keras.Model(pixels, maps if "classes" in scores else {"logits": maps, "boxes": pixels})
    options = {"mean": foreign_keras.HALF, "std": foreign_keras.HALF, **scores}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        attacked, control = adapted.of_keras("named", module, options, size=SIDE)
        assert_same_gradient(attacked, control)


@pytest.mark.parametrize("via", adapted.WAYS[adapted.NNX])
def test_the_control_of_nnx_is_the_gradient_of_an_iteration(via):
    module = adapted.Convolutions(nnx.Rngs(0))
    attacked, control = adapted.of_nnx("named", module, size=SIDE, via=via)
    assert_same_gradient(attacked, control)


def test_an_architecture_whose_package_is_absent_is_named(monkeypatch):
    monkeypatch.setattr(foreign, "lacking", lambda name: "torchvision")
    monkeypatch.setattr(foreign_keras, "lacking", lambda: "keras_hub")
    rows = adapted.measure(["fcn_resnet50", "keras_segformer"], size=SIDE, steps=2, pairs=1)
    case, way = rows[0]["case"], rows[0]["via"]
    assert case == "fcn_resnet50" and way.startswith("callback: torch")
    assert way.endswith(" is not installed")
    assert rows[-1] == {"case": "keras_segformer", "via": "keras: keras_hub is not installed"}
