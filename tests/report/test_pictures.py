"""Which image of a row is shown, on a model that sees the colours of blocks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

import dag_jax
from dag_jax import Method, report
from dag_jax.datasets import ExampleSet, palette
from dag_jax.errors import UserError
from dag_jax.report import pictures
from dag_jax.runs import evaluation, rundir
from dag_jax.runs.attacks import Plan
from dag_jax.runs.subject import subject_of


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Colours:
    """A segmenter that calls a pixel by its largest channel."""

    gain: jax.Array
    classes = ("red", "green", "blue")

    def scores(self, image):
        return self.gain * image

    def predict(self, image):
        return jnp.argmax(self.scores(image), axis=-1).astype(jnp.int32)


def example(name, channel):
    image = np.full((48, 48, 3), 60, np.uint8)
    image[..., channel] = 100
    boxes = {"boxes": np.float32([[0, 0, 9, 9]] * 2), "label": np.int32([0, 1])}
    return {
        "image_id": name,
        "image": image,
        "mask": np.full((48, 48), channel),
        "objects": boxes,
    }


@pytest.fixture
def plan_and_run(tmp_path):
    examples = ExampleSet([example("kept", 0), example("lost", 1)], Colours.classes)
    plan = Plan(subject_of(Colours(jnp.float32(1)), examples), Method())
    results = rundir.Results(tmp_path / "run", {"a": 1}, ["kept", "lost"])
    for row, change in enumerate(([0, 0, 0], [99, 0, 0])):
        change = np.zeros((48, 48, 3), np.float32) + np.float32(change)
        results.add(row, examples[row]["image"], change, {}, 0.0)
    return plan, rundir.read(tmp_path / "run")


def test_the_image_shown_is_one_that_the_attack_took(plan_and_run):
    (shown,) = pictures.attack_rows([plan_and_run])
    assert shown.title == "Colours on lost: mIoU 100 before, 0 after"
    assert (shown.before == 1).all() and (shown.after == 0).all()
    assert shown.adversarial[0, 0].tolist() == [159, 100, 60]


def test_no_image_is_shown_twice_while_there_are_others(plan_and_run):
    titles = [row.title for row in pictures.attack_rows([plan_and_run] * 3)]
    assert [title.split()[2] for title in titles] == ["lost:", "kept:", "lost:"]


def test_a_picture_compiles_nothing_on_the_devices_that_scored(plan_and_run, caplog):
    plan, _ = plan_and_run
    mesh = jax.sharding.Mesh(jax.local_devices()[:2], ("images",))
    images = evaluation.clean_images(list(plan.subject.examples))
    with jax.log_compiles():
        evaluation.predict(plan.subject.model, images, mesh=mesh)
        assert "_predict_batch" in caplog.text
        caplog.clear()
        pictures.attack_rows([plan_and_run] * 2, mesh=mesh)
    assert "_predict_batch" not in caplog.text


def test_it_is_drawn_in_the_colours_of_the_models_classes(plan_and_run, tmp_path):
    plan, run = plan_and_run
    pictures.draw(pictures.attack_rows([(plan, run)]), tmp_path / "a.png", plan.subject)
    with Image.open(tmp_path / "a.png") as image:
        assert image.size[0] > image.size[1]


def test_models_of_one_structure_share_a_picture():
    examples = ExampleSet([example("a", 0)], Colours.classes)
    first, second = (subject_of(Colours(jnp.float32(gain)), examples) for gain in (1, 2))
    assert pictures.kind_of(first) == pictures.kind_of(second)


def panels_of(figure):
    return {axes.get_title(): axes for axes in figure.findobj(Axes)}


def test_an_attack_is_drawn_with_what_a_model_makes_of_it():
    image, model = np.full((48, 48, 3), 60, np.float32), Colours(jnp.float32(1))
    image[..., 1] = 64
    attack = dag_jax.attack(model.scores, image, dag_jax.make_targets(np.full((48, 48), 1), 0))
    figure = report.show(attack, image, model)
    (part, _) = figure.subfigs
    assert part.get_suptitle() == attack.summary()
    panels = panels_of(figure)
    assert len(panels) == 5 and "change ×10" in panels
    largest = np.abs(np.asarray(attack.adversarial) - image).max()
    assert panels["change ×10"].get_xlabel() == f"at most {largest:.1f} grey levels"
    seen = [panels[f"prediction {when}"].images[0].get_array() for when in ("before", "after")]
    colours = palette(3)
    assert (seen[0] == colours[1]).all() and (seen[1] == colours[0]).all()
    png, size = figure._repr_png_()
    assert png.startswith(b"\x89PNG") and size == {"width": 832}


def test_an_attack_without_a_model_has_no_predictions_and_other_images_are_refused():
    image = np.zeros((48, 40, 3), np.uint8)
    figure = report.show(image + 1, image, title="mine")
    assert list(panels_of(figure)) == ["clean image", "adversarial image", "change ×10"]
    with pytest.raises(UserError, match=r"is \[48, 40, 3\] and the clean one \[40, 40, 3\]"):
        report.show(image, image[:40])
