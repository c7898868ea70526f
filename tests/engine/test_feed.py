"""Examples are read ahead, never too far, checked, padded, and cut back."""

import dataclasses
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dag_jax
from dag_jax.engine.feed import Failure, Feed, Prepare


def wait_for(condition):
    for _ in range(200):
        if condition():
            return True
        time.sleep(0.01)
    return False


def test_no_more_is_read_than_may_wait():
    read = []

    def endless():
        while True:
            read.append(len(read))
            yield read[-1]

    feed = Feed(lambda example: example, endless(), ahead=3)
    feed.wait(3)
    assert feed.pop() == [0, 1, 2]
    time.sleep(0.05)
    assert read == [0, 1, 2] and not feed.ended  # they wait still, though nobody has to look
    feed.taken(2)
    feed.wait(2)
    assert feed.pop() == [3, 4]
    before = threading.active_count()
    feed.close()
    assert threading.active_count() == before - 1
    assert len(read) == 5


def test_the_end_and_what_is_raised_come_after_what_was_read():
    def broken():
        yield "a"
        raise OSError("gone")

    feed = Feed(str.upper, broken(), ahead=9)
    assert wait_for(lambda: feed.ended)
    assert feed.pop() == ["A"] and feed.pop() == []
    assert str(feed.error) == "gone"
    feed.close()


def pixel_scores(image, extent):
    return image * extent[0].astype(jnp.float32)


@pytest.fixture
def prepare():
    return Prepare(pixel_scores, lambda score_fn, shape: (score_fn, (8, 4)), 0.0)


def test_an_example_is_padded_and_its_attack_cut_back(prepare, rng):
    image = rng.integers(0, 256, (5, 3, 3), np.uint8)
    labels = rng.integers(0, 2, (5, 3))
    ready = prepare(("a", image, dag_jax.make_targets(labels, 2 - 0 * labels)))
    padded, targets, (extent,) = ready.arrays
    assert padded.dtype == np.float32 and padded.shape == (8, 4, 3)
    np.testing.assert_array_equal(padded[:5, :3], image)
    assert not padded[5:].any() and not padded[:, 3:].any()
    assert targets.valid.sum() == 15 and targets.valid[:5, :3].all()
    assert targets.labels.dtype == np.int32
    np.testing.assert_array_equal(extent, [5, 3])
    state = dag_jax.init(dag_jax.Method(max_steps=2), padded, targets)
    cut = ready.crop(dataclasses.replace(state.attack, active=targets.valid))
    np.testing.assert_array_equal(cut.adversarial, image)
    assert cut.perturbation.shape == (5, 3, 3) and cut.active.shape == (5, 3)
    assert cut.active_counts.shape == (3,)


def test_what_cannot_be_attacked_is_a_failure_of_its_key(prepare):
    labels = np.zeros((5, 3), np.int32)
    targets = dag_jax.make_targets(labels, labels + 1)
    large = prepare(("large", np.full((9, 3, 3), 9.0), targets))
    assert large.key == "large" and "bucket (8, 4) is smaller" in str(large.error)
    mask = prepare(("mask", np.full((5, 3, 3), 9.0), labels))
    assert mask.key == "mask" and "targets are an array int32[5, 3]" in str(mask.error)
    nothing = prepare(7)
    assert nothing.key is None and "TypeError" in str(nothing.error)
    assert isinstance(nothing.error, ValueError)
    failure = Failure("b", ValueError("lost"))
    assert prepare(failure) is failure


@pytest.mark.parametrize(
    ("example", "key", "message"),
    [
        (("a", 1, 2, (), 5), "a", r"or \(key, image, targets, inputs\); this one has 5 items"),
        (("a", np.zeros((5, 3, 3))), "a", "this one has 2 items"),
        (("a",), "a", "this one has 1 item$"),
        (("a", 1, 2, np.zeros((2, 4))), "a", "inputs are a ndarray; they must be a tuple"),
        ((), None, "not enough values to unpack"),
    ],
)
def test_an_example_of_another_form_is_refused_by_its_key(prepare, example, key, message):
    failure = prepare(example)
    assert isinstance(failure, Failure) and failure.key == key
    with pytest.raises(ValueError, match=message):
        raise failure.error


def test_examples_are_made_and_prepared_under_the_settings_of_who_asks():
    def settings():
        x64, precision = jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision
        return x64, precision, jax.config.jax_default_device, np.geterr()["divide"]

    def examples():
        yield settings()

    plain, device = settings(), jax.devices()[1]
    with jax.enable_x64(True), jax.default_matmul_precision("bfloat16"), np.errstate(divide="call"):
        with jax.default_device(device):
            feed = Feed(lambda made: (made, settings()), examples(), ahead=1)
    feed.wait(1)
    ((made, prepared),) = feed.pop()
    feed.close()
    assert made == prepared == (True, "bfloat16", device, "call") and settings() == plain


def test_an_input_that_blocks_is_not_waited_for():
    """Nor is what it gives in the end prepared."""
    is_read, go_on, prepared = threading.Event(), threading.Event(), []

    def blocked():
        is_read.set()
        go_on.wait(60)
        yield "late"

    feed = Feed(prepared.append, blocked(), ahead=1)
    assert is_read.wait(60)
    started = time.monotonic()
    feed.close()
    assert time.monotonic() - started < 1
    go_on.set()
    feed.join(60)
    assert feed.ended and not prepared and feed.pop() == []


def test_what_is_being_prepared_is_waited_for():
    """It may compute, and what computes must not outlive the interpreter."""
    begun, done = threading.Event(), []

    def prepare(example):
        begun.set()
        time.sleep(0.2)
        done.append(example)

    feed = Feed(prepare, iter("ab"), ahead=2)
    assert begun.wait(60)
    feed.close()
    assert done == ["a"]
