"""PyTorch's modules compiled by torchax, against PyTorch in float64."""

import copy
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dag_jax
from dag_jax import adapters
from dag_jax.adapters import torchax
from dag_jax.runs.subject import weights_digest

torch = pytest.importorskip("torch", reason="PyTorch, of the torch extra, is not installed")

from tests.adapters.test_torch import Doubled  # noqa: E402

nn = torch.nn
HAS_TORCHAX = importlib.util.find_spec("torchax") is not None
needs_torchax = pytest.mark.skipif(not HAS_TORCHAX, reason="torchax, an extra, is not installed")

CLASSES = ("background", "cat", "dog", "bird")
IMAGE = np.random.default_rng(0).uniform(0, 255, (19, 26, 3)).astype(np.float32)
ZEROS, ONES = (0, 0, 0), (1, 1, 1)


def adapted(module, **changes):
    defaults = {"mean": ZEROS, "std": ONES, "classes": None, "size": IMAGE.shape[:2]}
    return adapters.from_torch(module.eval(), via="torchax", **defaults | changes)


def by_hand(module, image, weights=None):
    """Return (output, gradient [H, W, 3] of its sum with weights), by PyTorch in float64."""
    leaf = torch.tensor(image).double().requires_grad_()
    output = copy.deepcopy(module).double()(leaf.permute(2, 0, 1)[None] / 255)[0]
    (output * torch.tensor(weights)).sum().backward()
    return output.detach().numpy(), leaf.grad.numpy()


def check_as_in_float64(module):
    function = adapted(module)
    output, pull = jax.vjp(jax.jit(function), IMAGE)
    weights = np.random.default_rng(1).normal(size=output.shape).astype(np.float32)
    ours = output, pull(weights)[0]
    for our, their in zip(ours, by_hand(module, IMAGE, weights), strict=True):
        np.testing.assert_allclose(our, their, atol=3e-6 * np.abs(their).max(), rtol=0)


@needs_torchax
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 4, 3, padding=1),
        nn.Conv2d(8, 4, 3, padding=(0, 2), bias=False),
        nn.Conv2d(8, 4, 3, stride=2, padding=1),
        nn.Conv2d(8, 4, 7, stride=4, padding=3),
        nn.Conv2d(8, 4, 1, stride=2),
        nn.Conv2d(8, 4, 1, padding=1, stride=2),
        nn.Conv2d(8, 4, 3, dilation=2, padding=2),
        nn.Conv2d(8, 4, 3, dilation=2, stride=2),
        nn.Conv2d(8, 4, (1, 3)),
        nn.Conv2d(8, 4, 3, stride=(1, 2)),
        nn.Conv2d(8, 4, 3, groups=2),
        nn.Conv2d(8, 8, 5, stride=2, padding=2, groups=8),
        nn.Conv2d(8, 8, 3, dilation=2, padding=2, groups=8),
        nn.Conv2d(8, 16, 3, groups=8),
        nn.ConvTranspose2d(8, 4, 2, stride=2),
        nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1, output_padding=1),
        nn.ConvTranspose2d(8, 4, 3, stride=2, output_padding=1),
        nn.ConvTranspose2d(8, 4, 3, padding=1),
        nn.ConvTranspose2d(8, 12, 3, stride=2, groups=2),
        nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1, groups=8),
        nn.ConvTranspose2d(8, 4, (3, 2), stride=2, dilation=2, padding=(1, 0)),
        nn.Sequential(nn.Flatten(2), nn.Conv1d(8, 4, 3)),
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(2),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.MaxPool2d((2, 3)),
        nn.Sequential(nn.BatchNorm2d(8), nn.Upsample(scale_factor=2, mode="bilinear")),
        nn.Upsample((23, 12), mode="bilinear"),
        nn.Upsample(scale_factor=1.3, mode="bilinear"),
        nn.Upsample((40, 31), mode="bilinear", align_corners=True),
    ],
    ids=str,
)
def test_each_operator_is_pytorch_s(layer):
    torch.manual_seed(0)
    check_as_in_float64(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Tanh(), layer))


@needs_torchax
def test_indices_of_64_bits_are_no_warning():
    function = lambda _, x: x * torch.arange(x.shape[3], device=x.device).to(torch.int64)  # noqa: E731
    check_as_in_float64(Calls(function))


class Calls(nn.Module):
    """A convolution of a pair of functions: what it reads of the image, and what comes out."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.network, self.function = nn.Conv2d(3, 4, 3, stride=2, padding=1), function
        self.plain = [torch.linspace(1, 2, 4)[:, None, None]]

    def forward(self, x):
        return self.function(self, self.network(x))


def without_gradient(x):
    with torch.no_grad():
        return x.tanh()


@needs_torchax
@pytest.mark.parametrize(
    "function",
    [
        lambda _, x: x + (x.round() - x).detach(),  # rounds, and its gradient does not know
        lambda _, x: x * x.mT.detach().mT,
        lambda _, x: x * without_gradient(x),
    ],
)
@pytest.mark.filterwarnings("ignore:Calls has a gradient at the image that is off")
def test_what_is_detached_has_no_gradient(function):
    check_as_in_float64(Calls(function))


@needs_torchax
def test_a_part_that_is_detached_is_said():
    with pytest.warns(UserWarning, match="Calls has a .* off by 50% .* 2 times .* detach"):
        adapted(Calls(lambda _, x: x * x.detach()))


@needs_torchax
def test_the_parameters_are_traced():
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
    model = adapted(module, classes=CLASSES)
    digest, scores = weights_digest(model), model.scores(IMAGE)
    assert weights_digest(adapted(module, classes=CLASSES)) == digest
    assert weights_digest(adapted(module, classes=CLASSES, std=(1, 0.5, 1))) != digest
    traces = []

    @jax.jit
    def compiled(model, image):
        traces.append(0)
        return model.scores(image)

    np.testing.assert_allclose(compiled(model, IMAGE), scores, atol=1e-5)
    doubled = jax.tree.map(lambda leaf: leaf * 2 if leaf.shape == (4, 3, 3, 3) else leaf, model)
    assert not np.allclose(compiled(doubled, IMAGE), scores) and len(traces) == 1
    with torch.no_grad():
        module[0].weight.mul_(2)
    np.testing.assert_array_equal(model.scores(IMAGE), scores)  # as they were
    assert weights_digest(adapted(module, classes=CLASSES)) == weights_digest(doubled) != digest


def keeps(self, x):
    cache = self.__dict__.setdefault("kept", {})
    if x.shape[2] not in cache:
        cache[x.shape[2]] = torch.ones_like(x)
        self.offset = x.mean().detach()
    return x + cache[x.shape[2]]


@needs_torchax
def test_what_a_module_keeps_is_no_tracer():
    module = Calls(keeps)
    function = adapted(module, size=None)
    for rows in (16, 8, 16):
        jax.jit(lambda image: function(image))(IMAGE[:rows])
    jax.grad(lambda image: jax.jit(function)(image).sum())(IMAGE)
    assert all(type(each) is torch.Tensor for each in (*module.kept.values(), module.offset))
    assert module(torch.zeros(1, 3, 8, 8)).shape == (1, 4, 4, 4)  # PyTorch runs it still


def written(_, x):
    table = torch.zeros(4, 1, 1)
    table[1] = x.mean()
    return x + table


@needs_torchax
@pytest.mark.parametrize(
    "function",
    [
        lambda self, x: x * self.plain[0],
        lambda _, x: x * torch.arange(4)[:, None, None],
        lambda _, x: x + torch.detach(x).round() ** 2,
        written,
    ],
)
def test_tensors_that_are_no_parameters_mix(function):
    check_as_in_float64(Calls(function))


@needs_torchax
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda _, x: x if x.mean() > 0 else -x,
            r"cannot trace Calls \(.*via='callback'",
        ),
        (lambda _, x: x + Doubled.apply(x), "has a gradient other than PyTorch's own, by 0.7 of"),
        (lambda _, x: x + x.data**2, "has a gradient other than PyTorch's own"),
    ],
)
def test_what_torchax_cannot_do_is_refused(function, message):
    with pytest.raises(dag_jax.UserError, match=message):
        adapted(Calls(function))


@needs_torchax
def test_other_scores_than_pytorch_s_are_refused():
    module = Calls(lambda _, x: x)
    function, called = adapted(module), adapters.from_torch(module, mean=ZEROS, std=ONES)
    outputs = np.asarray(called(IMAGE))
    torchax.compare(function, IMAGE, [outputs], called.pull, "Calls")
    with pytest.raises(dag_jax.UserError, match=r"has scores other than .*, by 0\.02 of"):
        torchax.compare(function, IMAGE, [outputs * 1.02], called.pull, "Calls")


@needs_torchax
def test_several_outputs_are_those_that_were_named():
    module = Calls(lambda _, x: {"a": x, "b": x.mean((2, 3)), "n": 3})
    means, maps = jax.jit(adapted(module, output=("b", "a")))(IMAGE)
    assert means.shape == (4,) and maps.shape == (4, 10, 13)
    np.testing.assert_allclose(means, maps.mean(axis=(1, 2)), atol=1e-6)
    np.testing.assert_allclose(adapted(module, output="b")(IMAGE), means, atol=1e-6)


@needs_torchax
def test_a_module_of_half_precision_works_in_it():
    module = Calls(lambda _, x: x)
    single = adapted(module)(IMAGE)
    half = adapted(module.bfloat16())(IMAGE)
    assert half.dtype == jnp.float32
    np.testing.assert_array_equal(half, half.astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_allclose(half, single, atol=0.03 * np.abs(single).max())


@needs_torchax
@pytest.mark.parametrize(
    ("function", "changes", "message"),
    [
        (lambda _, x: x.softmax(1), {}, "Calls gives probabilities: .* give what it has before"),
        (
            lambda _, x: x.argmax(1, keepdim=True),
            {"classes": ("a",)},
            "Calls is torch.int64, such",
        ),
        (lambda _, x: {"out": x}, {}, r"a dict of 'out' \[1, 4, 10, 13\]; output= names one"),
        (lambda _, x: x, {"classes": CLASSES[:3]}, "scores of 4 classes, and classes= names 3"),
        (lambda _, x: x.detach(), {}, "Calls has no gradient at the image: somewhere"),
        (
            lambda _, x: {"a": x, "b": x.detach()},
            {"classes": None, "output": ("a", "b")},
            "output 'b' of Calls has no gradient",
        ),
        (lambda _, x: x, {"std": (1, 0, 1)}, "std is .*; it must be above 0"),
    ],
)
def test_what_cannot_be_attacked_is_told_why(function, changes, message):
    with pytest.raises(dag_jax.UserError, match=message):
        adapted(Calls(function), **{"classes": CLASSES} | changes)


@needs_torchax
def test_training_mode_is_refused_and_later_changes_nothing():
    module = Calls(lambda self, x: nn.functional.dropout(x, training=self.training))
    function = adapted(module)
    scores = np.asarray(function(IMAGE))
    module.train()
    np.testing.assert_array_equal(function(IMAGE), scores)
    with pytest.raises(dag_jax.UserError, match="Calls .* in training mode"):
        adapters.from_torch(module, mean=ZEROS, std=ONES, via="torchax")


def test_another_way_is_refused():
    with pytest.raises(
        dag_jax.UserError, match="via is 'jax'; it must be one of callback, torchax"
    ):
        adapters.from_torch(nn.Conv2d(3, 4, 3).eval(), mean=ZEROS, std=ONES, via="jax")


@pytest.mark.skipif(HAS_TORCHAX, reason="torchax is installed")
def test_what_lacks_is_said():
    with pytest.raises(dag_jax.UserError, match=r"torchax is not installed.*'dag-jax\[torchax\]'"):
        adapted(nn.Conv2d(3, 4, 3))
