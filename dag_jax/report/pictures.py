"""Pictures of attacks: of one that is at hand, and of images of a run that show what it did.

Shapes: `H W` pixels.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from dag_jax import models
from dag_jax.datasets.classes import VOID_COLOUR, palette
from dag_jax.engine import scoring
from dag_jax.errors import UserError
from dag_jax.metrics import Detections
from dag_jax.report import figures, lineplot
from dag_jax.runs import buckets, evaluation, rundir, scores
from dag_jax.runs.attacks import Plan
from dag_jax.runs.subject import Subject

SHOWN_OF = 100  # images that the one in the picture is chosen from
_SEEN, _LOST = 60, 10  # percent: a good picture's score before is above, after is below


def show(attack, image, model=None, *, title=None):
    """Draw one attack: the clean image, the adversarial image and the change, ten times as large.

    In a notebook the figure shows itself where it is the last line of a cell. Else
    `figure.savefig("attack.png")` keeps it.

    Args:
      attack: an `Attack` of one image, or the adversarial image [H, W, 3].
      image: [H, W, 3], the clean image, RGB grey levels.
      model: a `models.Segmenter` or `models.Detector`, whose predictions before and after are drawn
        beside; None draws none.
      title: of the figure; by default what `Attack.summary` says.

    Returns:
      A `matplotlib.figure.Figure`.

    Raises:
      UserError: where the images have different shapes, or `model` is no model.
    """
    adversarial = np.asarray(getattr(attack, "adversarial", attack))
    image = np.asarray(image)
    if image.shape != adversarial.shape or image.shape[2:] != (3,):
        raise UserError(
            f"the adversarial image is {list(adversarial.shape)} and the clean one "
            f"{list(image.shape)}; both must be [H, W, 3], of one image"
        )
    if title is None:
        title = attack.summary() if hasattr(attack, "summary") else ""
    row, names = figures.AttackRow(title, image, adversarial), ()
    if model is not None:
        names = models.about(model).classes
        before, after = evaluation.predict(model, [image, adversarial])
        row = row._replace(before=before, after=after)
    figure = figures.attack_figure([row], class_names=names, palette=palette(len(names)))
    size = {"width": round(100 * lineplot.WIDTH)}  # pixels on the page; the PNG has twice as many
    figure._repr_png_ = lambda: (lineplot.png_of(figure), size)  # what a notebook asks for
    return figure


def kind_of(subject: Subject):
    """Return what models share that are of one structure and one set of classes."""
    return scoring.kind_of(subject.model), subject.about.classes


def attack_rows(
    attacks: Iterable[tuple[Plan, rundir.Run]], *, mesh=None
) -> list[figures.AttackRow]:
    """Return a picture of each attack: of the first image whose objects the model finds and loses.

    If no image is like that, it is of the one that loses most. Each shows another image, where
    there are several.

    Args:
      attacks: of each row, how it was attacked and what its folder holds.
      mesh: devices; on those that the images were scored on, nothing is compiled again.
    """
    rows: list[figures.AttackRow] = []
    shown: set[str] = set()
    for plan, run in attacks:
        row, image_id = _attack_row(plan, run, shown, mesh)
        rows.append(row)
        shown.add(image_id)
    return rows


def _attack_row(plan, run, shown, mesh):
    """Return a picture, and the id of its image, which is none of `shown` if there are others."""
    subject = plan.subject
    examples = [subject.examples[row] for row in range(min(SHOWN_OF, len(subject.examples)))]
    attacked = buckets.Computed(scores.image_of(scores.ADVR, run, plan), examples)
    images = evaluation.clean_images(examples), attacked
    before, after = (evaluation.predict(subject.model, some, mesh=mesh) for some in images)
    left = np.nan_to_num(
        [
            [evaluation.score(subject, [example], [prediction]) for prediction in pair]
            for example, *pair in zip(examples, before, after, strict=True)
        ]
    )
    several = np.array([len(example["objects"]["label"]) > 1 for example in examples])
    fit = several & (left[:, 0] > _SEEN) & (left[:, 1] < _LOST)
    lost = left[:, 0] - left[:, 1]
    new = np.array([example["image_id"] not in shown for example in examples])
    if new.any():
        fit, lost = fit & new, np.where(new, lost, -np.inf)
    index = int(np.argmax(fit if fit.any() else lost))
    example = examples[index]
    unit = "mAP" if subject.about.detects else "mIoU"
    title = (
        f"{subject.about.title} on {example['image_id']}: {unit} {left[index, 0]:.0f} before, "
        f"{left[index, 1]:.0f} after"
    )
    clean = example["image"].astype(np.float32)
    row = figures.AttackRow(title, clean, attacked[index], before[index], after[index])
    return row, example["image_id"]


def draw(rows, path, subject: Subject) -> None:
    """Draw pictures of models with the classes of one of them.

    Args:
      rows: list of `figures.AttackRow`.
      path: of the PNG.
      subject: whose class names and void label they have.
    """
    names = subject.about.classes
    figure = figures.attack_figure(
        rows,
        class_names=names,
        palette=palette(len(names)),
        void=subject.examples.void,
        void_colour=VOID_COLOUR,
    )
    lineplot.save(figure, path)


def draw_together(rows, classes, path) -> None:
    """Draw pictures of models that need not have the same classes, with one legend.

    Args:
      rows: list of `figures.AttackRow`; no prediction has void.
      classes: for each of them the names of its model's classes, by index.
      path: of the PNG.
    """
    names = list(dict.fromkeys(name for model_names in classes for name in model_names))
    tables = [np.array([names.index(name) for name in model_names]) for model_names in classes]
    rows = [
        row._replace(before=_renamed(row.before, table), after=_renamed(row.after, table))
        for row, table in zip(rows, tables, strict=True)
    ]
    figure = figures.attack_figure(rows, class_names=names, palette=palette(len(names)))
    lineplot.save(figure, path)


def _renamed(prediction, table):
    """Return a prediction with other indices of the same classes."""
    if isinstance(prediction, Detections):
        return dataclasses.replace(prediction, classes=table[np.asarray(prediction.classes)])
    return table[prediction]
