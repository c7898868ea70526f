"""PyTorch's modules compiled by JAX, against PyTorch itself, called back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dag_jax
from dag_jax import adapters, models
from dag_jax.adapters import torchax as traced
from dag_jax.runs.subject import weights_digest

torch = pytest.importorskip("torch", reason="PyTorch, of the torchax extra, is not installed")
pytest.importorskip("torchax", reason="torchax, of the torchax extra, is not installed")

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = ("background", "cat", "dog", "bird")
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0, 255, (2, 24, 32, 3)).astype(np.float32)
IMAGE = IMAGES[0]


class Small(torch.nn.Module):
    """Has what compiling stumbles over: see each line of `forward`."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.head = torch.nn.Conv2d(8, 4, 3, padding=1)
        self.register_buffer("shift", torch.randn(1), persistent=False)
        self.plain, self.kept = [torch.rand(4, 1, 1)], {}

    def forward(self, x):
        y = torch.nn.functional.gelu(self.norm(self.convolution(x)))
        y = self.head(torch.nn.functional.max_pool2d(y, 3, 1, 1)) * self.plain[0] + self.shift
        size = tuple(y.shape[2:])
        if size not in self.kept:  # a tracer, where it is traced
            self.kept[size] = torch.arange(4, dtype=y.dtype)[:, None, None] + 0 * y[0, :, :1, :1]
        y = y + self.kept[size].detach()
        table = torch.zeros(4, 1, 1)
        table[1] = y.mean()  # written in place, into what was made without a device
        with torch.no_grad():
            level = y.amax((2, 3), keepdim=True)
        return y + table + 0.1 * level - 0.2 * y.detach() + 0.3 * torch.detach(y) ** 2


def adapted(module, **changes):
    options = {"mean": MEAN, "std": STD, "classes": CLASSES, "via": "torchax"} | changes
    return adapters.from_torch(module.eval(), **options)


def gradient_of(function, image, weights):
    scores, pull = jax.vjp(function, image)
    return np.asarray(scores), np.asarray(pull(weights)[0])


def assert_close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max(), rtol=0)


@pytest.fixture(scope="module")
def model():
    return adapted(Small())


@pytest.fixture(scope="module")
def targets(model):
    labels = np.asarray(model.predict(IMAGE))
    return dag_jax.make_targets(labels, (labels + 1) % 4)


@pytest.mark.parametrize("changes", [{}, {"size": (16, 20)}])
def test_scores_and_gradients_are_pytorch_s_what_it_detaches_included(changes):
    model, called = adapted(Small(), **changes), adapted(Small(), via="callback", **changes)
    weights = RNG.normal(size=called.scores(IMAGE).shape).astype(np.float32)
    theirs = gradient_of(called.scores, IMAGE, weights)
    for ours, expected in zip(
        gradient_of(jax.jit(model.scores), IMAGE, weights), theirs, strict=True
    ):
        assert_close(ours, expected)


@pytest.mark.parametrize(
    "layer",
    [
        torch.nn.Conv2d(4, 6, 3, padding=1),
        torch.nn.Conv2d(4, 6, 3, stride=2),
        torch.nn.Conv2d(4, 6, 3, padding=2, dilation=2),
        torch.nn.Conv2d(4, 6, 1, bias=False),
        torch.nn.Conv2d(4, 6, 2, stride=3, padding=1),
        torch.nn.Conv2d(4, 6, 3, groups=2),
        torch.nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4),
        torch.nn.Conv2d(4, 8, 3, padding=1, groups=4),
        torch.nn.Conv2d(4, 6, (1, 3), padding="same"),
        torch.nn.Conv2d(4, 6, 3, stride=2, dilation=2),
        torch.nn.ConvTranspose2d(4, 6, 3, stride=2),
    ],
    ids=str,
)
def test_every_kind_of_convolution_and_its_gradient_is_pytorch_s(layer):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), layer)
    options = {"classes": None, "size": (12, 14)}
    model, called = adapted(module, **options), adapted(module, via="callback", **options)
    image = RNG.uniform(0, 255, (12, 14, 3)).astype(np.float32)
    weights = RNG.normal(size=called(image).shape).astype(np.float32)
    pairs = zip(
        gradient_of(model, image, weights), gradient_of(called, image, weights), strict=True
    )
    for ours, theirs in pairs:
        assert_close(ours, theirs)


def test_parameters_are_leaves_and_no_constants(model):
    module = Small().eval()
    expected = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    paths = " ".join(models.parameters_of(model))
    assert all(f"'module.{name}'" in paths for name in expected)
    constants = jax.make_jaxpr(lambda model, image: model.scores(image))(model, IMAGE).consts
    assert sum(np.size(each) for each in constants) <= 8  # `plain`, which is no buffer
    twice = jax.tree.map(lambda leaf: leaf * 2, model)
    assert not np.allclose(twice.scores(IMAGE), model.scores(IMAGE))
    assert weights_digest(twice) != weights_digest(model) == weights_digest(adapted(module))
    assert weights_digest(adapted(module, std=(0.2, 0.2, 0.2))) != weights_digest(model)


def test_weights_are_those_of_the_module_as_it_was():
    module = Small()
    model = adapted(module)
    before = np.asarray(model.scores(IMAGE))
    with torch.no_grad():
        module.head.weight.zero_()
    module.train()
    np.testing.assert_array_equal(model.scores(IMAGE), before)
    assert_close(jax.jit(lambda image: model.scores(image))(IMAGE), before)


def test_what_a_module_keeps_does_not_outlive_a_trace():
    module = Small()
    model = adapted(module)
    for rows in (16, 24, 16):
        jax.jit(lambda image: model.scores(image))(IMAGE[:rows])
    assert not module.kept or all(type(each) is torch.Tensor for each in module.kept.values())
    assert_close(model.scores(IMAGE), adapted(module, via="callback").scores(IMAGE))


def test_a_batch_is_its_images(model):
    each = [np.asarray(model.scores(image)) for image in IMAGES]
    np.testing.assert_allclose(jax.jit(jax.vmap(model.scores))(IMAGES), each, atol=1e-5)
    weights = RNG.normal(size=each[0].shape).astype(np.float32)
    slopes = jax.jit(jax.grad(lambda image: (model.scores(image) * weights).sum()))
    batch, each = jax.vmap(slopes)(IMAGES), [slopes(image) for image in IMAGES]
    np.testing.assert_allclose(batch, each, atol=1e-6)


@pytest.mark.slow
def test_attack_and_stream_are_those_that_pytorch_is_called_back_in(model, targets):
    method = dag_jax.Method(max_steps=5)
    called = adapted(Small(), via="callback")
    expected = dag_jax.attack(models.score_fn(called), IMAGE, targets, method)
    function = models.score_fn(model)
    mesh = jax.sharding.Mesh(jax.local_devices(), ("images",))
    examples = [(name, IMAGE, targets) for name in "abc"]
    streamed = dict(dag_jax.attack_stream(function, examples, method, slots=2, mesh=mesh))
    assert sorted(streamed) == ["a", "b", "c"]
    for result in (dag_jax.attack(function, IMAGE, targets, method), *streamed.values()):
        np.testing.assert_allclose(result.perturbation, expected.perturbation, atol=1e-3)
        np.testing.assert_array_equal(result.active_counts, expected.active_counts)


@pytest.mark.slow
@pytest.mark.parametrize("via", ["callback", "torchax"])
def test_the_audit_passes_a_slope_and_finds_what_is_detached_half_way(via, targets):
    class Half(torch.nn.Module):
        def __init__(self, share):
            super().__init__()
            self.network, self.share = torch.nn.Conv2d(3, 4, 3, padding=1), share

        def forward(self, x):
            y = self.network(x)
            return y + self.share * y.detach()

    for share, passes in ((0, True), (1, False)):
        torch.manual_seed(0)
        function = models.score_fn(adapted(Half(share), via=via))
        findings = dag_jax.audit(function, IMAGE, targets)
        assert all(finding.passed for finding in findings) is passes, findings


def test_several_outputs_and_channels_last():
    class Last(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = Small()

        def forward(self, x):
            scores = self.network(x.permute(0, 3, 1, 2))
            return {"a": scores.permute(0, 2, 3, 1), "b": scores.mean((2, 3))}

    options = {"layout": "nhwc", "classes": None, "output": ("b", "a")}
    means, maps = jax.jit(adapted(Last(), **options))(IMAGE)
    assert means.shape == (4,) and maps.shape == (12, 16, 4)
    assert_close(maps, adapted(Small()).scores(IMAGE))
    np.testing.assert_allclose(means, maps.mean(axis=(0, 1)), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_module_of_another_precision(dtype):
    scores = adapted(Small().to(dtype)).scores(IMAGE)
    assert scores.dtype == jnp.float32
    expected = adapted(Small()).scores(IMAGE)
    np.testing.assert_allclose(scores, expected, atol=0.05 if dtype == torch.bfloat16 else 1e-5)


class Made(torch.nn.Module):
    """Returns what a function makes of a network's scores."""

    def __init__(self, function):
        super().__init__()
        self.network, self.function = torch.nn.Conv2d(3, 4, 3, padding=1), function

    def forward(self, x):
        return self.function(self.network(x))


class Doubled(torch.autograd.Function):
    """Has a gradient of its own, which is no slope; JAX does not know it."""

    @staticmethod
    def forward(context, x):
        return x * 1

    @staticmethod
    def backward(context, slope):
        return 2 * slope


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda s: s if s.mean() > 0 else -s, r"cannot trace Made \(\w+Error: .*via='callback'"),
        (lambda s: Doubled.apply(s), "compiled by torchax has a gradient other than PyTorch's"),
        (lambda s: s.detach(), "Made has no gradient at the image"),
        (lambda s: s.softmax(1), "Made gives probabilities"),
    ],
)
def test_what_cannot_be_attacked_this_way_is_told_why(function, message):
    with pytest.raises(dag_jax.UserError, match=message):
        adapted(Made(function))


def test_other_scores_than_pytorch_s_are_refused():
    called = adapted(Small(), via="callback").function
    image, model = IMAGE, adapted(Small())
    outputs = [np.asarray(called(image))]
    traced.compare(model.function, image, outputs, called.pull, "Small")
    with pytest.raises(
        dag_jax.UserError, match=r"Small .* has scores other than .*, by 0\.0\d+ of"
    ):
        traced.compare(model.function, image, [outputs[0] * 1.02], called.pull, "Small")


def test_training_mode_and_another_way_are_refused():
    with pytest.raises(dag_jax.UserError, match="it is in training mode"):
        adapters.from_torch(Small().train(), mean=MEAN, std=STD, via="torchax")
    with pytest.raises(dag_jax.UserError, match="via is 'onnx'; it must be one of callback, tor"):
        adapted(Small(), via="onnx")
