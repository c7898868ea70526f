"""The attack of many images: what is kept of each, and what costs no other."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dag_jax
from dag_jax import Method, Status, files, models, networks
from dag_jax.datasets import ExampleSet
from dag_jax.errors import UserError
from dag_jax.runs import attacks, rundir
from dag_jax.runs.attacks import Plan
from dag_jax.runs.subject import subject_of
from dag_jax.runs.targets import absent_targets, paper_targets


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Light:
    """A segmenter of light and dark, which cannot see images of less than 4 pixels."""

    gain: jax.Array

    classes = ("dark", "light")
    title = "Light"

    def scores(self, image):
        light = self.gain * (image.mean(axis=-1) - 127.8)
        return jnp.stack([-light, light], axis=-1)

    def predict(self, image):
        return jnp.argmax(self.scores(image), axis=-1).astype(jnp.int32)


class Padded(Light):
    """The same, with images of many sizes in arrays of 8 x 8 pixels."""

    def scores(self, image, extent=None):
        return super().scores(image)

    def predict(self, image, extent=None):
        return jnp.argmax(self.scores(image), axis=-1).astype(jnp.int32)

    def bucket(self, shape):
        if min(shape[:2]) < 4:
            raise UserError(f"the image is too small: {shape[0]} x {shape[1]} pixels")
        return self, tuple(-(-side // 8) * 8 for side in shape[:2])


jax.tree_util.register_dataclass(Padded)
METHOD = Method(max_steps=20)


def example(image_id, shape=(8, 8), grey=130):
    image = np.full((*shape, 3), grey, np.uint8)
    return {"image_id": image_id, "image": image, "mask": np.full(shape, grey > 128, np.uint8)}


def plan(kind, *examples, method=METHOD, **options):
    model = kind(jnp.float32(0.5))
    return Plan(subject_of(model, ExampleSet(examples, kind.classes)), method, **options)


def results_of(plan, folder):
    return rundir.Results(folder, plan.manifest(), list(map(str, plan.subject.ids)))


@pytest.fixture
def attack(mesh, tmp_path):
    def run(plan):
        results = results_of(plan, tmp_path / "run")
        attacks.attack_missing(plan, results, slots=2, mesh=mesh, label="attack")
        return results

    return run


@pytest.mark.slow
def test_a_record_says_what_holds_of_the_image_and_of_its_png(attack):
    results = attack(plan(Light, example("a"), example("b", grey=200)))
    near, far = results.records()
    assert (near["status"], far["status"]) == ("FOOLED", "MAX_STEPS")
    # From 130 to below 127.8: 5 steps of half a grey level. 127.5 is saved as 128.
    assert near["num_steps"] == 5 and near["active_counts"] == [64] * 5 + [0]
    assert near["largest_change"] == 2.5
    assert near["perceptibility"] == pytest.approx(2.5 * 3**0.5 / 255)
    assert near["fooled"] is True and near["fooled_png"] is False and near["active_png"] == 64
    assert far["num_steps"] == 20 and far["largest_change"] == 10
    assert far["fooled"] is far["fooled_png"] is False and far["active_png"] == 64
    assert far["active_counts"] == [64] * 21


def test_each_device_computes_targets_in_its_turn():
    seen, defaults = [], []

    def targets_of(subject, *args):
        seen.append(subject.model.gain.device)
        defaults.append(jax.config.jax_default_device)
        return paper_targets(subject, *args)

    many = plan(Light, *map(example, "abcde"), targets_of=targets_of)
    devices = jax.local_devices()[:2]
    with jax.default_device(devices[1]):  # whoever chooses none keeps the caller's
        assert next(iter(attacks.attack_inputs(many))) and defaults == [devices[1]]
    seen.clear()
    alone, shared = (list(attacks.attack_inputs(many, None, each)) for each in ((), devices))
    assert seen == 5 * devices[:1] + 2 * devices + devices[:1]
    jax.tree.map(np.testing.assert_array_equal, alone, shared)


def test_a_manifest_says_another_precision_than_float32():
    models = [networks.load("fcn_alex", miniature=True, precision=p) for p in ("float32", "tf32")]
    examples = ExampleSet([example("a")], models[0].classes)
    plain, fast = (Plan(subject_of(model, examples), METHOD).manifest() for model in models)
    assert "precision" not in plain and fast == plain | {"precision": "tf32"}


def test_sizes_are_of_the_whole_image():
    image = np.full((4, 4, 3), 100, np.uint8)
    change = np.zeros((4, 4, 3), np.float32)
    change[0, 0] = [3, 4, 0]
    counts, active = np.int32([16, 2, 0, -1]), np.zeros(16, bool)
    result = dag_jax.Attack(image + change, change, np.int32(2), active, counts, Status.FOOLED)
    assert attacks.record_of(image, result, (5, False)) == {
        "status": "FOOLED",
        "num_steps": 2,
        "active_counts": [16, 2, 0],
        "perceptibility": pytest.approx(5 / 255 / 4),
        "largest_change": 4.0,
        "fooled": True,
        "fooled_png": False,
        "active_png": 5,
        "image_sha256": files.sha256(image),
    }


def test_a_rounded_attack_s_png_fools_where_it_says_so(attack):
    (record,) = attack(plan(Light, example("a"), method=METHOD.replace(rounded=True))).records()
    assert record["fooled"] and record["fooled_png"] and record["active_png"] == 0


@pytest.mark.slow
def test_images_of_many_sizes_go_through_one_bucket(attack, tmp_path):
    sizes = {"a": (8, 8), "b": (5, 7), "c": (8, 4)}
    several = plan(Padded, *(example(name, size) for name, size in sizes.items()))
    results = attack(several)
    run = rundir.read(tmp_path / "run")
    for record, (name, size) in zip(results.records(), sizes.items(), strict=True):
        assert record["active_counts"] == [size[0] * size[1]] * 5 + [0]
        assert run.perturbation(name).shape == run.image(name).shape == (*size, 3)
        alone = plan(Light, example(name, size))
        ((_, image, targets, inputs),) = attacks.attack_inputs(alone)
        expected = dag_jax.attack(models.score_fn(alone.subject.model), image, targets, METHOD)
        np.testing.assert_allclose(run.perturbation(name), expected.perturbation, atol=1e-6)


def test_an_image_that_is_too_small_costs_no_other(attack, tmp_path, capsys):
    mixed = plan(Padded, example("a"), example("small", (3, 8)), example("c", (5, 5)))
    with pytest.raises(ValueError) as error:
        attack(mixed)
    assert "1 of 3 images could not be attacked; the others are finished" in str(error.value)
    assert "small: the image is too small: 3 x 8 pixels" in str(error.value)
    assert rundir.read(tmp_path / "run").keys == ["a", "c"]
    assert "small: the image is too small" in capsys.readouterr().err


def test_seconds_are_kept_of_each_image(attack):
    results = attack(plan(Light, *(example(name) for name in "abc")))
    timings = [results.timing(row) for row in range(3)]
    assert all(timing["finished"] > 0 for timing in timings)
    assert sum("since" in timing for timing in timings) == 2  # the first waits for the compiler


def test_other_images_of_the_same_names_are_refused(attack):
    attack(plan(Light, example("a"), example("b")))
    with pytest.raises(ValueError, match="made of another image of the name 'b'"):
        attack(plan(Light, example("a"), example("b", grey=131)))
    attack(plan(Light, example("b"), example("c")))  # others join


def test_a_finished_folder_is_not_attacked(attack, mesh, tmp_path):
    light = plan(Light, example("a"))
    attack(light)

    def targets_of(*_):
        raise AssertionError

    results = results_of(light, tmp_path / "run")
    attacks.attack_missing(light._replace(targets_of=targets_of), results, mesh=mesh, label="again")


def test_the_change_is_that_of_the_image_that_ends_at_black_and_white():
    image = np.uint8([[[0, 255, 100]]])
    adversarial = np.float32([[[0, 255, 97.5]]])
    np.testing.assert_array_equal(attacks.change_of(image, adversarial), [[[0, 0, -2.5]]])


@pytest.mark.parametrize(
    ("functions", "names"),
    [
        ((paper_targets, absent_targets), "dag_jax.runs.targets.{}_targets"),
        (
            [functools.partial(paper_targets, most=most) for most in (5, 6)],
            "dag_jax.runs.targets.paper_targets(most={})",
        ),
        (
            [functools.partial(paper_targets, 1, b=2, a=n) for n in (5, 6)],
            "dag_jax.runs.targets.paper_targets(1, a={}, b=2)",
        ),
    ],
)
def test_a_function_s_name_tells_it_from_others(functions, names):
    function_names = [attacks.name_of(function) for function in functions]
    values = ("paper", "absent") if functions[0] is paper_targets else (5, 6)
    assert function_names == [names.format(value) for value in values]


def test_a_manifest_is_of_all_that_changes_results():
    base = plan(Light, example("a"))
    changed_plans = [
        plan(Light, example("a"), seed=1),
        plan(Light, example("a"), targets_of=absent_targets),
        plan(Light, example("a"), method=METHOD.replace(margin=1.0)),
        plan(Light, example("a"), method=METHOD.replace(rounded=True)),
        plan(Light, example("a"), method=dag_jax.methods.momentum()),
        base._replace(subject=dataclasses.replace(base.subject, weights_sha256="other")),
        base._replace(subject=dataclasses.replace(base.subject, name="other")),
    ]
    manifests = [str(each_plan.manifest()) for each_plan in (base, *changed_plans)]
    assert len(set(manifests)) == len(manifests)
    assert base.manifest(split="x")["split"] == "x"
    more = plan(Light, example("a"), example("b"))
    assert more.manifest() == base.manifest()  # which images are attacked is no setting


def test_there_are_no_more_lanes_than_images(mesh):
    light = plan(Light, example("a"))
    stream = attacks.open_stream(light, attacks.attack_inputs(light), count=1, slots=16, mesh=mesh)
    ((row, result),) = stream
    assert row == 0 and result.status == Status.FOOLED
