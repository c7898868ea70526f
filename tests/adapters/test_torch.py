"""PyTorch's modules as ours, against PyTorch itself: the same pipeline, written by hand.

What takes `model` runs by callback and, where torchax is installed, by that.
"""

import importlib.util

import jax
import numpy as np
import pytest

import dag_jax
from dag_jax import adapters, models
from dag_jax.runs.subject import weights_digest
from tests.adapters import everywhere

torch = pytest.importorskip("torch", reason="PyTorch, of the torch extra, is not installed")

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = ("background", "cat", "dog", "bird")
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0, 255, (2, 24, 32, 3)).astype(np.float32)
IMAGE = IMAGES[0]
FROM_JAX = (ValueError, jax.errors.JaxRuntimeError)  # by which what is called back raises


def network(features=4):
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2, padding=1),
        torch.nn.BatchNorm2d(8),
        torch.nn.GELU(),
        torch.nn.Conv2d(8, features, 3, padding=1),
    ).eval()


def adapted(module, **changes):
    return adapters.from_torch(module, **{"mean": MEAN, "std": STD, "classes": CLASSES} | changes)


def by_hand(module, image, weights, dtype=torch.float32, size=None):
    """Return (scores [h, w, C], gradient [H, W, 3] of their sum with weights), PyTorch's own."""
    leaf = torch.tensor(image).requires_grad_()
    x = leaf.permute(2, 0, 1)[None].to(dtype)
    if size:
        x = torch.nn.functional.interpolate(x, size, mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1).to(dtype) for values in (MEAN, STD))
    scores = module.to(dtype)((x / 255 - mean) / std)[0].permute(1, 2, 0)
    (scores * torch.tensor(weights).to(dtype)).sum().backward()
    return scores.detach().numpy(), leaf.grad.numpy()


def gradient_of(function, image, weights):
    scores, pull = jax.vjp(function, image)
    return np.asarray(scores), np.asarray(pull(weights)[0])


@pytest.fixture(scope="module")
def module():
    return network()


@pytest.fixture(scope="module", params=["callback", "torchax"])
def model(module, request):
    if request.param == "torchax" and not importlib.util.find_spec("torchax"):
        pytest.skip("torchax, an extra, is not installed")
    return adapted(module, via=request.param)


@pytest.fixture(scope="module")
def targets(model):
    labels = np.asarray(model.predict(IMAGE))
    return dag_jax.make_targets(labels, (labels + 1) % 4)


@pytest.mark.parametrize("size", [None, (16, 20)])
def test_scores_and_gradients_are_pytorch_s_to_the_last_bit(module, size):
    function = adapted(module, size=size).scores
    weights = RNG.normal(size=function(IMAGE).shape).astype(np.float32)
    expected = by_hand(module, IMAGE, weights, size=size)
    for compiled in (function, jax.jit(function)):
        for ours, theirs in zip(gradient_of(compiled, IMAGE, weights), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_gradients_are_those_of_float64(model):
    weights = RNG.normal(size=model.scores(IMAGE).shape).astype(np.float32)
    exact = by_hand(network(), IMAGE, weights, torch.float64)
    for ours, theirs in zip(gradient_of(model.scores, IMAGE, weights), exact, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6 * np.abs(theirs).max(), rtol=0)


def test_a_batch_is_its_images(model):
    each = [np.asarray(model.scores(image)) for image in IMAGES]
    np.testing.assert_array_equal(jax.jit(jax.vmap(model.scores))(IMAGES), each)
    slopes = jax.grad(lambda image: model.scores(image).max())
    np.testing.assert_array_equal(jax.vmap(slopes)(IMAGES), [slopes(image) for image in IMAGES])


def test_a_module_of_another_precision_works_in_it(module):
    double = network().double()
    ours = gradient_of(adapted(double).scores, IMAGE, np.ones((12, 16, 4), np.float32))
    theirs = by_hand(double, IMAGE, np.ones((12, 16, 4)), torch.float64)
    assert ours[0].dtype == np.float32
    np.testing.assert_array_equal(ours[0], theirs[0].astype(np.float32))


def test_an_attack_is_that_of_a_loop_in_pytorch(module, model, targets):
    steps = 20
    result = dag_jax.attack(models.score_fn(model), IMAGE, targets, dag_jax.Method(max_steps=steps))
    labels, adversarial = (
        torch.tensor(np.asarray(each)).long()[None]
        for each in (targets.labels, targets.adversarial)
    )
    r, counts = torch.zeros(IMAGE.shape), []
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    for _ in range(steps):  # Algorithm 1, written anew
        x = (torch.tensor(IMAGE) + r).clip(0, 255).requires_grad_()
        scores = module((x.permute(2, 0, 1)[None] / 255 - mean) / std)
        scores = torch.nn.functional.interpolate(scores, IMAGE.shape[:2], mode="bilinear")
        active = scores.argmax(1) == labels
        picked = [scores.gather(1, each[:, None])[:, 0] for each in (adversarial, labels)]
        counts.append(int(active.sum()))
        (slope,) = torch.autograd.grad(((picked[0] - picked[1]) * active).sum(), x)
        r = r + 0.5 / slope.abs().max() * slope
    assert result.active_counts[:steps].tolist() == counts and counts[-1] < counts[0]
    np.testing.assert_allclose(result.perturbation, r.numpy(), atol=1e-4)


@pytest.mark.slow
def test_the_stream_the_batch_and_the_audit_say_the_same(model, targets):
    everywhere.check(models.score_fn(model), IMAGE, targets)


def test_a_step_runs_forward_once(targets):
    module, calls = network(), []
    model = adapted(module)
    model.scores(IMAGE)
    hook = module.register_forward_hook(lambda *_: calls.append(1))
    dag_jax.attack(models.score_fn(model), IMAGE, targets, dag_jax.Method(max_steps=12))
    hook.remove()
    assert len(calls) == 12 + 1  # the scores of what was made


def test_what_is_kept_of_a_forward_pass_serves_once_and_is_not_needed():
    function, devices = adapted(network(), classes=None), jax.local_device_count()
    cotangents = RNG.normal(size=(3, 4, 12, 16)).astype(np.float32)
    _, late = jax.vjp(function, IMAGE)
    for _ in range(devices):
        jax.vjp(function, IMAGES[1])  # takes its place
    assert len(function._graphs) == devices
    expected = [function.pull(IMAGE, [each]) for each in cotangents]
    for pull in (late, jax.vjp(function, IMAGE)[1], jax.vjp(jax.jit(function), IMAGE)[1]):
        for each, gradient in zip(cotangents, expected, strict=True):
            np.testing.assert_array_equal(pull(each)[0], gradient)
    _, pull = jax.vjp(function, IMAGE)
    np.testing.assert_array_equal(jax.vmap(pull)(cotangents)[0], expected)


def test_run_folders_tell_weights_apart():
    module = network()
    model = adapted(module)
    before, scores = weights_digest(model), model.scores(IMAGE)
    assert weights_digest(adapted(network())) == before
    assert weights_digest(adapted(module, std=(0.2, 0.2, 0.2))) != before
    with torch.no_grad():
        module[1].running_mean.add_(1)  # a buffer
    assert weights_digest(model) != before
    assert not np.array_equal(model.scores(IMAGE), scores)  # and they are used
    inside = jax.tree_util.Partial(lambda function, image: -function(image), model.function)
    assert weights_digest(adapters.from_function(inside, classes=CLASSES)) != weights_digest(model)


class Outputs(torch.nn.Module):
    """Returns what a function makes of a network's scores."""

    def __init__(self, function, features=4):
        super().__init__()
        self.network, self.function = network(features), function

    def forward(self, x):
        return self.function(self.network(x))


class Doubled(torch.autograd.Function):
    """Has a gradient that is no slope."""

    @staticmethod
    def forward(_, x):
        return 1 * x

    @staticmethod
    def backward(_, slope):
        return 2 * slope


def test_scores_are_found_by_their_name_or_number():
    named = adapted(Outputs(lambda scores: {"out": scores, "aux": -scores}).eval(), output="out")
    numbered = adapted(Outputs(lambda scores: (-scores, scores)).eval(), output=1)
    np.testing.assert_array_equal(named.scores(IMAGE), numbered.scores(IMAGE))
    assert named.title == "Outputs" and named.classes == CLASSES


def test_channels_last():
    class Last(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network()

        def forward(self, x):
            return self.network(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    ours = adapted(Last().eval(), layout="nhwc").scores(IMAGE)
    np.testing.assert_allclose(ours, adapted(network()).scores(IMAGE), atol=1e-6)


def test_without_classes_it_is_a_function_of_what_was_named():
    module = Outputs(lambda scores: {"a": scores, "b": scores.mean((2, 3))})
    function = adapted(module.eval(), classes=None, output=("b", "a"))
    means, maps = jax.jit(function)(IMAGE)
    assert means.shape == (4,) and maps.shape == (4, 12, 16)
    np.testing.assert_allclose(means, maps.mean(axis=(1, 2)), atol=1e-6)
    only_means = jax.grad(lambda image: function(image)[0].sum())(IMAGE)
    both = jax.grad(lambda image: function(image)[1].mean((1, 2)).sum())(IMAGE)
    np.testing.assert_allclose(only_means, both, atol=1e-7)
    single = adapted(module, classes=None, output="b")
    np.testing.assert_array_equal(single(IMAGE), means)


@pytest.mark.parametrize(
    ("function", "changes", "message"),
    [
        (lambda s: s.softmax(1), {}, "Outputs gives probabilities: .* a pixel sum to 1; give what"),
        (lambda s: s.sigmoid(), {}, "gives probabilities: .* none is outside of 0..1"),
        (lambda s: s.argmax(1, keepdim=True), {"classes": ("a",)}, "Outputs is torch.int64"),
        (
            lambda s: {"out": s, "aux": s, "n": 3},
            {"output": "logits"},
            r"a dict of 'out' \[1, 4, 112, 144\], 'aux' .*; none of them is output='logits'",
        ),
        (lambda s: {"out": s}, {}, r"a dict of 'out' \[1, .*; output= names one"),
        (lambda s: (s, s), {"output": 2}, "a tuple of 0 .*; none of them is output=2"),
        (lambda s: s, {"output": "out"}, "returns one array: output='out' names nothing in it"),
        (lambda s: {"n": 3}, {"output": "n"}, "a dict of no array"),
        (lambda s: 3, {}, "returns a int; it must return an array"),
        (lambda s: s, {"classes": CLASSES[:3]}, "scores of 4 classes, and classes= names 3"),
        (
            lambda s: s.permute(0, 2, 3, 1),
            {},
            r"\[1, 112, 144, 4\]: scores of 112 classes, .* 4; layout='nhwc' would fit",
        ),
        (
            lambda s: s.mean((2, 3)),
            {},
            r"returns \[1, 4\]; scores .* are \[1, C, h, w\]",
        ),
        (lambda s: s.mean((2, 3), keepdim=True), {}, "at the image's size, or at one stride"),
        (lambda s: s.mT[:, :, :, ::8], {}, "of an image of 224 x 288 pixels"),
        (lambda s: s.detach(), {}, "Outputs has no gradient at the image: somewhere inside"),
        (lambda s: s.detach().requires_grad_(), {}, "has no gradient"),
        (lambda s: 0 * s - 1, {}, "has a gradient of zero"),
        (lambda s: s / 0, {}, "Outputs has scores not finite, on an image of noise"),
        (lambda s: 0 * s.abs().sqrt() / (s - s.detach()), {}, "not finite"),
        (
            lambda s: {"a": s, "b": s + np.inf},
            {"classes": None, "output": ("a", "b")},
            "output 'b' of Outputs has scores not finite",
        ),
        (
            lambda s: {"a": s, "b": s.detach()},
            {"classes": None, "output": ("a", "b")},
            "output 'b' of Outputs has no gradient",
        ),
        (lambda s: s, {"output": ("a", "b")}, "of a segmenter it names one"),
        (lambda s: s, {"mean": (123.7, 116.3, 103.5)}, "it is of images in 0..1: divide"),
        (lambda s: s, {"std": (1, 0, 1)}, "std is .*; it must be above 0"),
        (lambda s: s, {"std": (1, 1)}, "it must be three numbers, of R, G and B"),
        (lambda s: s, {"std": (58, 57, 57)}, "std is .* divide mean and std of grey levels by 255"),
        (lambda s: s, {"mean": "imagenet"}, "mean is 'imagenet'; it must be three numbers"),
        (lambda s: s, {"size": 64}, r"size is 64; it must be pixels \(h, w\)"),
        (lambda s: s, {"size": (0, 64)}, r"size is \(0, 64\); it must be pixels"),
        (lambda s: s, {"classes": 3}, "classes are 3; they are names"),
        (lambda s: s, {"classes": None, "output": ()}, "output is an empty tuple"),
        (lambda s: s, {"layout": "NCHW"}, "layout is 'NCHW'; it must be one of nchw, nhwc"),
        (lambda s: s, {"classes": "abcd"}, "classes are 'abcd'; they are names"),
        (lambda s: s, {"classes": ("a",) * 4}, "classes repeat"),
    ],
)
def test_what_cannot_be_attacked_is_told_why(function, changes, message):
    with pytest.raises(dag_jax.UserError, match=message):
        adapted(Outputs(function).eval(), **changes)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda s: s * s.detach(), "Outputs has a .* off by 50% of its .* 2 times .* detach"),
        (lambda s: s + (3 * s.roll(5, 3)).tanh().detach(), "off by .*; dag_jax.audit says more"),
        (Doubled.apply, "are 0.5 times what it says"),
        (lambda s: {"a": s, "b": s * s.detach()}, "^output 'b' of Outputs has .* off by 50%"),
    ],
)
def test_a_gradient_that_is_no_slope_is_said(function, message):
    several = {"classes": None, "output": ("a", "b")} if "output" in message else {}
    with pytest.warns(UserWarning, match=message) as warned:
        adapted(Outputs(function).eval(), **several)
    assert len(warned) == 1


@pytest.mark.parametrize(
    "function",
    [
        lambda s: s.relu() - 1,
        lambda s: 1e-9 * s + 2,  # lost in rounding
        lambda s: s + (s.round() - s).detach(),  # there is no slope to compare with
    ],
)
def test_nothing_is_said_of_other_gradients(function):
    adapted(Outputs(function).eval())


def test_nothing_is_said_of_half_precision_and_of_outputs_whose_shape_changes():
    module = network().bfloat16()
    adapted(module)
    rows = iter(range(3, 99))
    adapted(Outputs(lambda s: s.flatten()[: next(rows)]).eval(), classes=None)


def test_a_module_in_training_mode_is_refused():
    module = network()
    with pytest.raises(dag_jax.UserError, match="Sequential .* it is in training mode: call mod"):
        adapted(module.train())
    module.eval()[1].train()
    with pytest.raises(dag_jax.UserError, match="its 1 is in training mode"):
        adapted(module)


def test_training_mode_that_comes_later_is_refused():
    module = network()
    model, targets = adapted(module), dag_jax.make_targets(np.zeros((24, 32), np.int32), 1)
    module.train()
    with pytest.raises(dag_jax.UserError, match="training mode"):
        jax.jit(model.scores)(IMAGE)
    module.eval()
    compiled = jax.jit(model.scores)
    compiled(IMAGE)
    module.train()
    gradient = jax.grad(lambda image: model.scores(image).sum())
    attack = lambda image: dag_jax.attack(models.score_fn(model), image, targets)  # noqa: E731
    for run in (compiled, model.scores, gradient, attack):
        with pytest.raises(FROM_JAX, match="it is in training mode: call module.eval"):
            run(IMAGE)
    assert not module[1].num_batches_tracked


def test_buffers_that_are_not_saved_are_weights_too():
    digests = []
    for value in (1.0, 2.0, 1.0):
        module = network()
        module.register_buffer("gain", torch.tensor(value), persistent=False)
        digests.append(weights_digest(adapted(module)))
    assert digests[0] == digests[2] != digests[1]


def test_what_is_no_module_is_refused():
    with pytest.raises(dag_jax.UserError, match="module is a function; it must be a torch.nn.Mod"):
        adapted(by_hand)
