"""The blocks of docs/how_to/models.md run as pasted, and what they make can be attacked."""

import importlib.util
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dag_jax
from dag_jax import adapters, models
from dag_jax.adapters import from_queries
from dag_jax.metrics import Truths
from dag_jax.runs.subject import weights_digest
from tests.adapters import everywhere

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/how_to/models.md").read_text()
BLOCKS = re.findall(r"^## ([^\n]*)\n|^```python\n(.*?)^```", PAGE, re.M | re.S)
IMAGE = np.random.default_rng(0).uniform(0, 255, (32, 40, 3)).astype(np.float32)


def blocks():
    """Yield each block of the page under the title that it stands under."""
    title = None
    for heading, code in BLOCKS:
        title = heading or title
        if code:
            yield pytest.param(code, id=title)


@pytest.mark.slow
@pytest.mark.parametrize("code", list(blocks()))
def test_a_recipe_makes_a_model_that_can_be_attacked(code):
    for package in re.findall(r"^(?:import|from) (\w+)", code, re.M):
        if not importlib.util.find_spec(package):
            pytest.skip(f"{package} is not installed")
    if "import keras" in code:
        keras = pytest.importorskip("keras", reason="Keras has no backend here")
        if keras.backend.backend() != "jax":
            pytest.skip("KERAS_BACKEND is not jax")
    names = {}
    exec(compile(code, "docs/how_to/models.md", "exec"), names)
    model = names["model"]
    if models.about(model).detects:
        detections = model.detect(IMAGE)
        truths = Truths(detections.boxes, detections.classes, np.zeros(len(detections.boxes), bool))
        targets, score_fn = dag_jax.detector_targets(model, IMAGE, truths, key=jax.random.key(0))
    else:
        labels = np.asarray(model.predict(IMAGE))
        targets, score_fn = dag_jax.make_targets(labels, (labels + 1) % 3), models.score_fn(model)
    everywhere.check(score_fn, IMAGE, targets)
    if jax.tree.leaves(model):  # PyTorch has none: tests/adapters/test_torch.py
        shifted = jax.tree.map(lambda leaf: leaf + jnp.ones_like(leaf), model)
        assert weights_digest(shifted) != weights_digest(model)


@pytest.mark.slow
def test_no_framework_is_imported_before_it_is_asked_for():
    code = "import sys, dag_jax.adapters; print({'torch', 'keras', 'equinox'} & set(sys.modules))"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout == "set()\n", process.stderr


@pytest.mark.parametrize("name", ["torch", "keras"])
def test_what_lacks_is_said(name):
    if importlib.util.find_spec(name):
        pytest.skip(f"{name} is installed")
    adapter = getattr(adapters, f"from_{name}")
    with pytest.raises(dag_jax.UserError, match=rf"needs .*: pip install 'dag-jax\[{name}\]'"):
        adapter(None, mean=(0, 0, 0), std=(1, 1, 1))


BOXES = np.float32([[0, 0, 5, 5], [2, 3, 9, 9], [1, 1, 1, 1], [20, 8, 30, 30]])
KERNEL = np.float32(np.random.default_rng(1).normal(size=(3, 4, 3)))


@pytest.fixture(scope="module")
def queries():
    def logits(parameters, image):
        return parameters[0], jnp.einsum("c,cnk->nk", image.mean(axis=(0, 1)) / 255, parameters[1])

    return from_queries(jax.tree_util.Partial(logits, (BOXES, KERNEL)), classes=("cat", "dog"))


def test_queries_are_the_candidates_and_no_object_the_last_column(queries):
    about = models.about(queries)
    assert about.detects and about.background == 2 and about.objects == (0, 1)
    candidates = queries.propose(IMAGE)
    np.testing.assert_array_equal(candidates.boxes, BOXES)
    scores = np.einsum("c,cnk->nk", IMAGE.mean(axis=(0, 1)) / 255, KERNEL)
    np.testing.assert_allclose(queries.scores(IMAGE, np.int32([3, 0])), scores[[3, 0]], rtol=1e-4)
    exp = np.exp(scores)
    probabilities = (exp / exp.sum(1, keepdims=True))[:, :2]
    detections = jax.jit(lambda model, image: model.detect(image))(queries, IMAGE)
    np.testing.assert_array_equal(detections.classes, probabilities.argmax(1))
    np.testing.assert_allclose(detections.scores, probabilities.max(1), rtol=1e-4)
    np.testing.assert_array_equal(detections.valid, probabilities.max(1) > 0.05)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("cat",), r"boxes \[4, 4\] and logits \[4, 3\]; of 1 classes and no object .* \[N, 2\]"),
        (("cat", "background"), "classes name 'background'; they are those of objects alone"),
        (("cat", "cat"), "classes repeat"),
        ("cats", "they are names"),
    ],
)
def test_queries_of_other_classes_are_refused(queries, classes, message):
    with pytest.raises(dag_jax.UserError, match=message):
        from_queries(queries.function, classes=classes).detect(IMAGE)


@pytest.mark.parametrize("outputs", [{"boxes": 0, "logits": 1}, (0, 1, 2)])
def test_queries_that_are_no_pair_are_refused(outputs):
    with pytest.raises(dag_jax.UserError, match="Queries returns a .*; it must return a pair"):
        from_queries(lambda image: outputs, classes=("cat",)).detect(IMAGE)


@pytest.fixture(scope="module")
def sigmoid():
    """A toy: queries that see class 0 by how bright their box is, and class 1 by how dark."""
    boxes = np.float32([[1, 1, 14, 14], [2, 2, 15, 15], [20, 1, 35, 12], [22, 18, 37, 30]])

    def look(gain, image):
        held = [image[top : low + 1, left : right + 1].mean() for left, top, right, low in places]
        bright = gain * (jnp.stack(held) - 127)
        return jnp.asarray(boxes), jnp.stack([bright, -bright], axis=1)

    places = boxes.astype(int).tolist()
    look = jax.tree_util.Partial(look, jnp.float32(0.1))
    return adapters.from_sigmoid_queries(
        look, classes=("day", "background"), threshold=0.2, nms_threshold=0.5, title="Toy"
    )


def scene():
    """Return an image whose first, overlapping queries are bright, and whose last is dark."""
    image = np.full((32, 40, 3), 120, np.float32)
    image[:16, :16], image[18:, 22:] = 150, 90
    return image


def test_each_query_says_of_each_class_whether_it_is_there(sigmoid):
    about = models.about(sigmoid)
    assert about.detects and about.objects == (0, 1) and about.background is None
    assert about.title == "Toy" and about.margin == 0
    handle = np.int32([3, 0])
    logits = 0.1 * (np.float32([90, 150])[:, None] - 127) * np.float32([1, -1])[None]
    scores = sigmoid.scores(scene(), handle)
    np.testing.assert_allclose(scores[..., 0], logits, rtol=1e-5)
    np.testing.assert_allclose(jax.nn.sigmoid(scores[..., 1]), 0.2, rtol=1e-6)
    detections = jax.jit(lambda model, image: model.detect(image))(sigmoid, scene())
    # By descending score: the dark one, one of the two bright ones that overlap, and the third,
    # which is a little dark, and less a bright one.
    rows = np.flatnonzero(detections.valid)
    expected = 1 / (1 + np.exp(-np.float32([3.7, 2.3, 0.7, -0.7])))
    np.testing.assert_array_equal(detections.classes[rows], [1, 0, 1, 0])
    np.testing.assert_allclose(detections.scores[rows], expected, rtol=1e-5)
    boxes = np.asarray(sigmoid.propose(IMAGE).boxes)
    np.testing.assert_array_equal(detections.boxes[rows[:2]], boxes[[3, 0]])


def test_an_attack_leaves_no_detection_of_the_classes_that_were_there(sigmoid):
    truths = Truths(np.float32([[1, 1, 14, 14]]), np.int32([0]), np.zeros(1, bool))
    targets, score_fn = dag_jax.detector_targets(sigmoid, scene(), truths, key=jax.random.key(0))
    assert targets.labels.shape == (4, 2) and np.array_equal(targets.valid, [[True, False]] * 4)
    result = dag_jax.attack(score_fn, scene(), targets, dag_jax.Method(max_steps=200))
    assert result.status == dag_jax.Status.FOOLED and result.active_counts[0] == 3
    detections = sigmoid.detect(result.adversarial)
    classes = np.asarray(detections.classes)[np.asarray(detections.valid)]
    assert (classes == 1).any() and not (classes == 0).any()


def test_probabilities_of_queries_fail_the_audit(sigmoid):
    truths = Truths(np.float32([[1, 1, 14, 14]]), np.int32([0]), np.zeros(1, bool))

    def squashed(image):
        boxes, logits = sigmoid.function(image)
        return boxes, jax.nn.sigmoid(logits)

    for function, passed in ((squashed, False), (sigmoid.function, True)):
        model = adapters.from_sigmoid_queries(function, classes=sigmoid.classes)
        key = jax.random.key(0)
        targets, score_fn = dag_jax.detector_targets(model, scene(), truths, key=key)
        findings = {each.check: each for each in dag_jax.audit(score_fn, scene(), targets)}
        assert findings["scores are logits"].passed is passed


def test_without_suppression_every_pair_above_the_threshold_is_a_detection(sigmoid):
    plain = adapters.from_sigmoid_queries(sigmoid.function, classes=("a", "b"), threshold=0.2)
    assert int(plain.detect(scene()).valid.sum()) == int(sigmoid.detect(scene()).valid.sum()) + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ("cat",)}, r"boxes \[4, 4\] and logits \[4, 2\]; of 1 classes .* \[N, 1\]"),
        ({"threshold": 1}, "threshold is 1; a probability"),
        ({"nms_threshold": 1.5}, "nms_threshold is 1.5; an IoU"),
        ({"classes": ("cat", "cat")}, "classes repeat"),
    ],
)
def test_sigmoid_queries_that_do_not_fit_are_refused(sigmoid, changes, message):
    options = {"classes": ("cat", "dog")} | changes
    with pytest.raises(dag_jax.UserError, match=message):
        adapters.from_sigmoid_queries(sigmoid.function, **options).detect(IMAGE)


def test_a_function_is_a_segmenter_whose_coarse_scores_are_resized():
    def forward(kernel, image):
        cells = image.reshape(8, 4, 10, 4, 3).mean(axis=(1, 3))
        return cells @ kernel

    kernel = jnp.asarray(KERNEL[:, 0])
    model = adapters.from_function(
        jax.tree_util.Partial(forward, kernel), classes=("a", "b", "c"), title="Cells"
    )
    assert models.about(model).title == "Cells"
    resized = jax.image.resize(forward(kernel, IMAGE), (32, 40, 3), "bilinear")
    np.testing.assert_array_equal(model.predict(IMAGE), jnp.argmax(resized, axis=-1))
    compiled = jax.jit(lambda model, image: model.predict(image))(model, IMAGE)
    np.testing.assert_array_equal(compiled, model.predict(IMAGE))
