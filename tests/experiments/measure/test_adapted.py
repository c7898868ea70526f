"""What an adapted module is measured against computes the same gradient."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch, of the torch extra, is not installed")

from experiments.measure import adapted, foreign, iterations  # noqa: E402

SIDE = 16


class Named(torch.nn.Module):
    """Scores of a map in a dict, or boxes and logits of queries."""

    def __init__(self, queries):
        super().__init__()
        self.queries, self.layer = queries, torch.nn.Conv2d(3, 5, 4, stride=4)

    def forward(self, pixels):
        maps = torch.nn.functional.gelu(self.layer(pixels))
        queries = maps.flatten(2).transpose(1, 2)
        return {"boxes": queries[..., :4], "logits": queries} if self.queries else {"out": maps}


@pytest.mark.parametrize(
    ("queries", "options"),
    [
        (False, {"output": "out", "classes": foreign.CLASSES}),
        (True, {"output": ("boxes", "logits")}),
    ],
)
def test_the_control_is_the_gradient_of_an_iteration(queries, options):
    torch.manual_seed(0)
    module = Named(queries).eval()
    attacked = adapted.problem("named", module, options, size=SIDE, via="callback")
    assert attacked.case == "named, 16 px" and attacked.targets.labels.size == 16
    _, ours = iterations.forward_and_gradient(*attacked.arguments)
    theirs = adapted.own(module, options, attacked)()
    assert theirs.shape == (SIDE, SIDE, 3) and np.abs(theirs).max() > 0
    np.testing.assert_allclose(ours, theirs, atol=1e-6 * np.abs(theirs).max())
    row = iterations.engine(attacked, iterations=3, pairs=1, control=lambda: theirs)
    assert row["case"] == attacked.case and row["engine_ms"] > 0 and row["iterations"] == 3


def test_an_architecture_whose_package_is_absent_is_named(monkeypatch):
    monkeypatch.setattr(foreign, "lacking", lambda name: "torchvision")
    (row,) = adapted.measure(["fcn_resnet50"], size=SIDE, steps=2, pairs=1)[:1]
    assert row == {"case": "fcn_resnet50", "via": "torchvision is not installed"}
