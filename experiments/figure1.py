r"""Figure 1: one perturbation of one image that fools a segmentation network and a detector.

    python -m experiments.figure1
    python -m experiments.figure1 --models=fcn_alex,fr_zf_07 --seed=1
    python -m experiments.figure1 --models=my_package.my_module:load,fr_vgg_07
    python -m experiments.figure1 --models=espnetv2_20_384,yolov3_nano_voc --nominiature \
        --weights_dir=runs/weights --dataset=voc --data_dir=VOCdevkit --method=clipped_best_other

--models names a model that segments and one that detects. Both are attacked at once: `attack` takes
a dict of scores and of targets. It scores the image rounded to whole grey levels, so all pictures
and numbers are of adversarial.png. Images are tried in order until one qualifies: its perturbation
leaves no target active and stays below 10 grey levels everywhere, and the whole detector finds none
of the objects that it found before. If no image qualifies, the best is shown and the launch says
what it lacks.

Results go to --workdir: figure1.png, figure1.json, and the adversarial image, adversarial.png.
"""

from typing import NamedTuple

import jax
import numpy as np
from absl import app, flags

import dag_jax
from dag_jax import files, methods, models
from dag_jax.progress import progress
from dag_jax.report import figures, pictures, tables
from dag_jax.runs import evaluation, joint, rundir, scores
from dag_jax.runs.attacks import Plan
from dag_jax.runs.subject import Subject, subject_of
from experiments.common import console, inputs, options

RIGHT, LOST = 60, 5  # percent: the score before is no less, the one after no more

FLAGS = flags.FLAGS
options.define(
    __name__,
    *("models", "dataset", "split", "data_dir", "cache_dir", "canvas", "weights_dir", "miniature"),
    *("image_ids", "limit", "method", "max_steps", "step_size", "margin", "precision", "seed"),
    *("skip_bad", "workdir"),
    models=["fcn_vgg", "fr_vgg_0712"],
    limit=30,
    workdir="runs/figure1",
)


class Try(NamedTuple):
    """An image that was attacked."""

    row: dict  # of figure1.json
    lacks: list[str]  # what keeps it from being the figure
    clean: np.ndarray  # u8[H, W, 3]
    saved: np.ndarray  # u8[H, W, 3]
    predictions: list  # for each model those on both


def load_subjects(names) -> tuple[Subject, Subject]:
    """Return (subject that segments, subject that detects), on the same images.

    Raises:
      app.UsageError: where they are not one of each.
    """
    loaded = [(name, *inputs.load_model(name)) for name in names]
    loaded.sort(key=lambda item: models.about(item[1]).detects)
    if [models.about(model).detects for _, model, _ in loaded] != [False, True]:
        raise app.UsageError("--models: the figure is of one that segments and one that detects")
    examples = inputs.examples_of(loaded[0][1])
    return tuple(
        subject_of(model, examples, name=name, weights_sha256=sha256)
        for name, model, sha256 in loaded
    )


def plan_of(subject, max_steps) -> Plan:
    """Return how a model is attacked."""
    method = methods.UNBOUNDED[FLAGS.method]().replace(
        step_size=FLAGS.step_size,
        margin=subject.about.margin if FLAGS.margin is None else FLAGS.margin,
        max_steps=max_steps,
        rounded=True,  # so that the PNG itself fools
    )
    return Plan(subject, method, seed=FLAGS.seed)


def attempt(plans, number) -> Try:
    """Attack an image on both models, and score them on it."""
    problem = joint.problem_of(plans, number)
    attack = jax.device_get(dag_jax.attack(*problem))
    saved = rundir.saved_pixels(problem.image, attack.perturbation)
    record = joint.record_of(problem, attack, saved)
    predictions = []
    for subject in (plan.subject for plan in plans):
        example = subject.examples[number]
        pair = evaluation.predict(subject.model, [problem.image, saved])
        percent = [round(evaluation.score(subject, [example], [each]), 2) for each in pair]
        record["models"][subject.name] |= {"title": subject.about.title, "score": percent}
        predictions.append(pair)
    before, after = zip(*(facts["score"] for facts in record["models"].values()), strict=True)
    wanted = {
        f"a change below {scores.NOTICEABLE} grey levels": (
            record["largest_change"] < scores.NOTICEABLE
        ),
        "an attack that finished": record["fooled_png"],
        "models that see nothing right any more": max(after) <= LOST,
        "models that are right before the attack": min(before) >= RIGHT,
    }
    lacks = [text for text, is_there in wanted.items() if not is_there]
    row = {"image_id": plans[0].subject.ids[number], **record}
    return Try(row, lacks, problem.image, saved, predictions)


def main(argv):
    """Attack images until one makes the figure; draw it."""
    console.start(argv)
    subjects = load_subjects(FLAGS.models)
    max_steps = FLAGS.max_steps or max(subject.about.max_steps for subject in subjects)
    plans = [plan_of(subject, max_steps) for subject in subjects]
    without = ("workdir", "cache_dir", "data_dir", "weights_dir", "skip_bad")
    settings = options.settings(__name__, without)
    settings["weights_sha256"] = {subject.name: subject.weights_sha256 for subject in subjects}
    workdir = rundir.claim(FLAGS.workdir, settings)

    best = None
    for number in progress(range(len(subjects[0].ids)), desc="images tried", unit="image"):
        tried = attempt(plans, number)
        if best is None or len(tried.lacks) < len(best.lacks):
            best = tried
        if not best.lacks:
            break

    drawn = []
    for subject, pair in zip(subjects, best.predictions, strict=True):
        before, after = best.row["models"][subject.name]["score"]
        title = (
            f"{subject.about.title} on {best.row['image_id']}, the same perturbation in both rows: "
            f"{'mAP' if subject.about.detects else 'mIoU'} {before:.0f} before, {after:.0f} after "
            f"{best.row['num_steps']} steps"
        )
        drawn.append(figures.AttackRow(title, best.clean, best.saved, *pair))
    classes = [subject.about.classes for subject in subjects]
    pictures.draw_together(drawn, classes, workdir / "figure1.png")
    files.write(workdir / "adversarial.png", files.pack_image(best.saved))
    content = {"settings": settings, **best.row, "lacks": best.lacks}
    files.write_json(workdir / "figure1.json", content)
    for facts in best.row["models"].values():
        print(f"{facts['title']}: {facts['score'][0]} before, {facts['score'][1]} after")
    for note in tables.method_notes(settings):
        print(note)
    print(
        f"{best.row['image_id']}: {best.row['status']} after {best.row['num_steps']} steps, the "
        f"saved PNG leaves {best.row['active_png']} targets; largest change "
        f"{best.row['largest_change']:.0f}, p {best.row['perceptibility']:.2g}"
    )
    if best.lacks:
        lacks = "; ".join(best.lacks)
        print(f"no image of {len(subjects[0].ids)} has everything; the one shown lacks {lacks}")
    print(f"results: {workdir}/")


if __name__ == "__main__":
    console.run(main)
