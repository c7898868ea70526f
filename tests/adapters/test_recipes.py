"""The blocks of docs/models.md run as they are pasted, and what they make can be attacked."""

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

ROOT = pathlib.Path(__file__).resolve().parents[2]
BLOCKS = re.findall(
    r"^## ([^\n]*)\n|^```python\n(.*?)^```", (ROOT / "docs/models.md").read_text(), re.M | re.S
)
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
    if 'via="torchax"' in code:
        pytest.importorskip("torchax", reason="torchax is not installed")
    if "import keras" in code:
        keras = pytest.importorskip("keras", reason="Keras has no backend here")
        if keras.backend.backend() != "jax":
            pytest.skip("KERAS_BACKEND is not jax")
    names = {}
    exec(compile(code, "docs/models.md", "exec"), names)
    model = names["model"]
    method = dag_jax.Method(max_steps=2)
    if models.about(model).detects:
        found = model.detect(IMAGE)
        truths = Truths(found.boxes, found.classes, np.zeros(len(found.boxes), bool))
        targets, score_fn = dag_jax.detector_targets(model, IMAGE, truths, key=jax.random.key(0))
    else:
        labels = np.asarray(model.predict(IMAGE))
        targets, score_fn = dag_jax.make_targets(labels, (labels + 1) % 3), models.score_fn(model)
    result = dag_jax.attack(score_fn, IMAGE, targets, method)
    counts = np.asarray(result.active_counts)
    assert counts[0] > 0 and np.abs(result.perturbation).max() > 0
    if jax.tree.leaves(model):  # PyTorch has none: tests/adapters/test_torch.py
        other = jax.tree.map(lambda leaf: leaf + jnp.ones_like(leaf), model)
        assert weights_digest(other) != weights_digest(model)


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
    found = jax.jit(lambda model, image: model.detect(image))(queries, IMAGE)
    np.testing.assert_array_equal(found.classes, probabilities.argmax(1))
    np.testing.assert_allclose(found.scores, probabilities.max(1), rtol=1e-4)
    np.testing.assert_array_equal(found.valid, probabilities.max(1) > 0.05)


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


SEEN = np.float32(np.random.default_rng(2).integers(0, 16, (30, 2)))
SEEN = np.concatenate([SEEN, SEEN + np.float32([12, 9])], axis=1)  # boxes that overlap


def in_boxes(kernel, image):
    """Return (boxes f32[30, 4], logits f32[30, 3] of the colours that each box holds)."""
    down, along = (
        (np.arange(extent) >= SEEN[:, first, None])
        & (np.arange(extent) <= SEEN[:, first + 2, None])
        for extent, first in zip(image.shape[:2], (1, 0), strict=True)
    )
    inside, across = (np.float32(each) for each in (down, along))
    means = jnp.einsum("nh,nw,hwc->nc", inside, across, image) / 130
    return jnp.asarray(SEEN), (means / 255 - 0.5) @ kernel


@pytest.fixture(scope="module")
def anchors():
    function = jax.tree_util.Partial(in_boxes, 40 * KERNEL[:, 0])
    classes, head = ("cat", "dog", "bird"), "sigmoid"
    return from_queries(function, classes=classes, head=head, min_score=0.3, nms_threshold=0.4)


def dropped(boxes, scores, threshold):
    """Return the indices that greedy suppression keeps, the loop of its definition."""
    kept = []
    for place in np.argsort(-scores, kind="stable"):
        low, high = (pick(boxes[place], boxes[kept]) for pick in (np.maximum, np.minimum))
        sides = np.maximum(high[..., 2:] - low[..., :2] + 1, 0)
        shared = sides.prod(-1)
        if not kept or (shared / (2 * 130 - shared) <= threshold).all():
            kept.append(place)
    return kept


@pytest.mark.parametrize("threshold", [0.4, None])
def test_of_a_sigmoid_head_each_class_is_detected_by_itself(anchors, threshold):
    model = from_queries(
        anchors.function,
        classes=anchors.classes,
        head="sigmoid",
        min_score=0.3,
        nms_threshold=threshold,
    )
    about = models.about(model)
    assert about.background is None and about.objects == (0, 1, 2)
    boxes, logits = map(np.asarray, in_boxes(40 * KERNEL[:, 0], IMAGE))
    scores = np.asarray(model.scores(IMAGE, np.int32([3, 0])))
    np.testing.assert_allclose(scores[..., 0], logits[[3, 0]], rtol=1e-4)
    np.testing.assert_allclose(scores[..., 1], np.log(0.3 / 0.7), rtol=1e-5)
    expected = set()
    for label in range(3):
        above = np.flatnonzero(logits[:, label] > np.log(0.3 / 0.7))
        kept = range(len(above))
        if threshold:
            kept = dropped(boxes[above], logits[above, label], threshold)
        expected |= {(*boxes[above[place]], label) for place in kept}
    found = jax.jit(lambda model, image: model.detect(image))(model, IMAGE)
    rows = np.column_stack([found.boxes, found.classes])[np.asarray(found.valid)]
    assert set(map(tuple, rows)) == expected and len(rows) > 3
    assert (np.asarray(found.scores)[: len(rows)] > 0.3).all()


@pytest.mark.slow
def test_what_a_sigmoid_head_detects_is_attacked_until_it_detects_nothing(anchors):
    found = anchors.detect(IMAGE)
    real = np.asarray(found.valid)
    classes = np.asarray(found.classes)[real]
    truths = Truths(np.asarray(found.boxes)[real], classes, np.zeros(real.sum(), bool))
    targets, score_fn = dag_jax.detector_targets(anchors, IMAGE, truths, key=jax.random.key(0))
    assert targets.valid.sum() == 30 * len(set(classes))
    method = dag_jax.Method(margin=0.1, max_steps=100)
    result = dag_jax.attack(score_fn, IMAGE, targets, method)
    left = anchors.detect(result.adversarial)
    assert result.status == dag_jax.Status.FOOLED
    assert not np.isin(np.asarray(left.classes)[np.asarray(left.valid)], classes).any()
    findings = dag_jax.audit(score_fn, IMAGE, targets)
    assert all(finding.passed for finding in findings), findings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "logits"}, "head is 'logits'; it must be one of softmax, sigmoid"),
        ({"min_score": 0}, "min_score is 0; it must be a probability, between 0 and 1"),
        ({"head": "sigmoid", "nms_threshold": 1.5}, "nms_threshold is 1.5; it must be an IoU"),
        ({"nms_threshold": 0.5}, "nms_threshold is 0.5; .* of a sigmoid head"),
    ],
)
def test_heads_and_thresholds_that_are_none_are_refused(queries, changes, message):
    with pytest.raises(dag_jax.UserError, match=message):
        from_queries(queries.function, classes=("cat", "dog"), **changes)


def test_logits_of_another_number_of_classes_are_refused(anchors):
    model = from_queries(anchors.function, classes=("cat", "dog"), head="sigmoid")
    with pytest.raises(dag_jax.UserError, match=r"of 2 classes they must be \[N, 4\] and \[N, 2\]"):
        model.detect(IMAGE)


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
