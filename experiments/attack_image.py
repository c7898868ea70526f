"""Attack any photograph: the PNG that fools a model, or several at once, the panels, and a record.

    python -m experiments.attack_image --image=photo.jpg --models=fcn_vgg
    python -m experiments.attack_image --image=photo.jpg --models=fr_vgg_07 --target=background
    python -m experiments.attack_image --image=photo.jpg --models=fcn_vgg --target=drawing.png
    python -m experiments.attack_image --image=photo.jpg --models=fcn_vgg,fr_vgg_07   one PNG, both
    python -m experiments.attack_image --image=photo.jpg --models=my_package.my_module:load
    python -m experiments.attack_image --image=photo.jpg --models=fcn_vgg --nominiature \
        --weights_dir=runs/weights

A photograph has no ground truth, so the model's own predictions take its place: the class that a
segmenter gives to each pixel, and the objects that a detector finds with a score of --min_score or
more, which label its candidates. The attack succeeds where the prediction changes, right or wrong.
The miniatures of the package have seen only rendered scenes, and say little that is true of a
photograph; `experiments.train` and converted weights give networks that do. Several models are
attacked by one perturbation, until none has an active target.

The attack scores the image as rounded to whole grey levels, so the PNG itself fools. The record has
the result on the attacked image (fooled) and on the file as read back (fooled_png, active_png). A
target rests once its label has lost, whichever class has won. A larger --margin continues towards
--target.

Results go to --workdir: adversarial.png; clean.png, the photograph upright and scaled, for
comparison; attack_image.png, the panels; attack_image.json, the record. Where there is nothing to
attack, such as for a detector that finds no object, nothing is written.
"""

import functools
import pathlib

import jax
import numpy as np
from absl import app, flags

import dag_jax
from dag_jax import datasets, files, methods, models
from dag_jax.datasets import photographs
from dag_jax.engine.algorithm import advance
from dag_jax.errors import UserError
from dag_jax.progress import progress
from dag_jax.report import figures, pictures
from dag_jax.runs import evaluation, joint, rundir
from dag_jax.runs.attacks import Plan
from dag_jax.runs.targets import absent_targets, paper_targets
from dag_jax.runs.unlabelled import MIN_SCORE, aimed_targets, as_seen, changes_of
from experiments.common import console, inputs, options

CANVAS = 128  # pixels: what the miniatures were trained at
LONG_NAME = 24  # letters of a file's name that the panels have room for
CHUNK = 5  # iterations between two looks at the progress
RULES = {"permute": paper_targets, "absent": absent_targets}
FILES = {
    "adversarial": "adversarial.png",
    "clean": "clean.png",
    "panels": "attack_image.png",
    "record": "attack_image.json",
}


def check_canvas(side):
    """Raise UserError for a --canvas that is neither 0 nor a side that networks can see."""
    least, most = options.SIDES
    if side and not least <= side <= most:
        raise UserError(f"must be 0, or {least} to {most} pixels")


FLAGS = flags.FLAGS
options.string("image", None, "The photograph: JPEG, PNG, anything that Pillow reads.")
flags.mark_flag_as_required("image")
options.integer(
    "canvas",
    None,
    "Scale the photograph to a square of this many pixels; 0 leaves it as it is. Default: "
    f"{CANVAS} if one of the models is a miniature, which was trained on squares of that size and "
    "sees only objects of the sizes they have there; else 0: a segmenter takes time and memory "
    "that grow with the pixels, a Faster R-CNN scales on its own.",
    0,
)
options.string(
    "target",
    "permute",
    "What to see instead. permute: one permutation of the classes (the paper). absent: classes "
    "that the model does not see there (the authors' release). The name of a class of the model, "
    "background included: that class everywhere. A file: a drawn segmentation of the photograph's "
    "size for a segmenter, grey levels being class indices, or in the colours of VOC; void is left "
    "alone.",
)
options.number(
    "min_score",
    MIN_SCORE,
    "Least score of a detection that counts as an object.",
    options.share,
)
options.define(
    __name__,
    *("models", "miniature", "weights_dir", "precision", "method", "max_steps", "step_size"),
    *("margin", "seed", "workdir"),
    models=["fcn_vgg"],
    workdir="runs/attack_image",
)
options.check(check_canvas, "canvas")


def read_drawing(target, about, shape):
    """Return (class of each pixel i32[H, W], SHA-256) of the file that --target names.

    Raises:
      UserError: where it is no file, and where the drawing is damaged or its size differs from the
        photograph's shape (H, W); app.UsageError for a detector.
    """
    if not pathlib.Path(target).is_file():
        raise UserError(
            f"--target={target} is no rule ({', '.join(RULES)}), no class of {about.title} "
            f"({', '.join(about.classes)}) and no file"
        )
    if about.detects:
        raise app.UsageError(f"--target={target} is a segmentation, {about.title} detects")
    void = datasets.VOID if len(about.classes) <= datasets.VOID else None
    drawing, sha256 = photographs.read_class_map(target, classes=about.classes, void=void)
    if drawing.shape != shape:
        raise UserError(
            f"{target} has {drawing.shape[1]} x {drawing.shape[0]} pixels, the upright photograph "
            f"has {shape[1]} x {shape[0]}"
        )
    return drawing, sha256


def scaled(image, canvas, drawing=None):
    """Return an image and its drawing (zeros if there is none), scaled to the size to attack."""
    mask = np.zeros(image.shape[:2], np.int32) if drawing is None else drawing
    if not canvas:
        return image, mask
    nothing = {"boxes": np.zeros((0, 4), np.float32)}
    example = {"image": image, "mask": mask[:, :, None], "objects": nothing}
    example = datasets.resize(example, canvas)
    return example["image"], example["mask"][:, :, 0]


def plan_of(subject, targets_of, max_steps) -> Plan:
    """Return how a model is attacked."""
    method = methods.UNBOUNDED[FLAGS.method]().replace(
        step_size=FLAGS.step_size,
        margin=subject.about.margin if FLAGS.margin is None else FLAGS.margin,
        max_steps=max_steps,
        rounded=True,  # so that the PNG itself fools
    )
    return Plan(subject, method, targets_of, FLAGS.seed)


def attack(problem, label):
    """Attack with a progress bar of steps and active targets; return the `Attack`."""
    dag_jax.check(*problem)
    score_fn, image, targets, method = problem
    run = jax.jit(advance)
    state = dag_jax.init(method, image, targets)
    with progress(total=method.max_steps, desc=label, unit="step") as bar:
        while int(state.attack.status) == dag_jax.Status.RUNNING:
            state = run(method, score_fn, state, targets, state.attack.num_steps + CHUNK)
            active = sum(int(mask.sum()) for mask in jax.tree.leaves(state.attack.active))
            bar.set_postfix(active=active, refresh=False)
            bar.update(int(state.attack.num_steps) - bar.n)
    return jax.device_get(state.attack)


def text_of(facts):
    """Return the changes of a model's prediction in a few words."""
    if "pixels_changed" in facts:
        return f"{100 * facts['pixels_changed']:.1f}% of the pixels change class"
    return (
        f"objects found: {facts['objects_before']} before; {facts['objects_kept']} of these and "
        f"{facts['objects_other']} other after"
    )


def main(argv):
    """Read the photograph, ask the models, attack, save, read back, record."""
    console.start(argv)

    # 1. Everything that can be wrong is read before any work.
    photograph = photographs.read_photograph(FLAGS.image)
    height, width = photograph.pixels.shape[:2]
    loaded = {name: inputs.load_model(name) for name in FLAGS.models}
    canvas, target, drawing_sha256 = FLAGS.canvas, FLAGS.target, None
    if canvas is None:
        small = any(getattr(model, "miniature", False) for model, _ in loaded.values())
        canvas = CANVAS if small else 0
    clean, _ = scaled(photograph.pixels, canvas)
    rules = {}
    for name, (model, _) in loaded.items():
        about = models.about(model)
        if target in RULES:
            rules[name] = RULES[target]
            continue
        if target in about.classes:
            wanted = about.classes.index(target)
        else:
            drawing, drawing_sha256 = read_drawing(target, about, (height, width))
            _, wanted = scaled(photograph.pixels, canvas, drawing)
        rules[name] = functools.partial(aimed_targets, adversarial=wanted)

    # 2. What the models say, which is what they are to unlearn.
    image_id, plans = pathlib.Path(photograph.name).stem, []
    max_steps = FLAGS.max_steps or max(models.about(m).max_steps for m, _ in loaded.values())
    for name, (model, sha256) in loaded.items():
        subject = as_seen(
            model,
            {image_id: clean},
            min_score=FLAGS.min_score,
            name=name,
            weights_sha256=sha256,
        )
        if subject.about.detects and not len(subject.examples[0]["objects"]["label"]):
            raise UserError(
                f"{subject.about.title} finds no object in {photograph.name} that scores "
                f"{FLAGS.min_score:g}: there is nothing to attack"
            )
        plans.append(plan_of(subject, rules[name], max_steps))
    problem = joint.problem_of(plans)
    for plan in plans:
        if not problem.targets[plan.subject.name].valid.any():
            raise UserError(
                f"{plan.subject.about.title} has no target in {photograph.name}: all that it finds "
                f"there is as --target={target} asks already"
            )
    settings = options.settings(__name__, without=("workdir", "weights_dir")) | {
        "canvas": canvas,
        "max_steps": max_steps,
        "margin": problem.method.margin,
        "target": target if drawing_sha256 is None else pathlib.Path(target).name,
        "target_sha256": drawing_sha256,
        "image": photograph.name,
        "image_sha256": photograph.sha256,
        "weights_sha256": {name: sha256 for name, (_, sha256) in loaded.items()},
    }
    workdir = rundir.claim(FLAGS.workdir, settings)
    if files.exists(workdir / FILES["record"]):
        print(f"this attack is done: {workdir}/")
        return

    # 3. The attack, and what is true of the file.
    result = attack(problem, ", ".join(plan.subject.about.title for plan in plans))
    saved = rundir.saved_pixels(clean, result.perturbation)
    files.write(workdir / FILES["clean"], files.pack_image(clean))
    files.write(workdir / FILES["adversarial"], files.pack_image(saved))
    saved = photographs.read_photograph(workdir / FILES["adversarial"]).pixels
    record = joint.record_of(problem, result, saved)
    rows, steps = [], record["num_steps"]
    name = photograph.name
    short = name if len(name) <= LONG_NAME else f"{name[: LONG_NAME - 1]}…"
    for subject in (plan.subject for plan in plans):
        part = record["models"][subject.name]
        before, after = evaluation.predict(subject.model, [clean, saved])
        targets = problem.targets[subject.name]
        facts = changes_of(subject, before, after, targets, min_score=FLAGS.min_score)
        text = text_of(facts)
        text = f"{text}, {part['active_png']} of {part['targets']} targets left"
        part |= {"title": subject.about.title, **facts}
        title = f"{subject.about.title} on {short}, {steps} steps: {text}"
        rows.append(figures.AttackRow(title, clean, saved, before, after))
        print(f"{subject.about.title} on {name}: {text}")
    classes = [plan.subject.about.classes for plan in plans]
    pictures.draw_together(rows, classes, workdir / FILES["panels"])
    content = {
        "settings": settings,
        "exif_orientation": photograph.orientation,
        "photograph_size": [width, height],
        "size": [clean.shape[1], clean.shape[0]],
        **record,
        "files": FILES,
    }
    files.write_json(workdir / FILES["record"], content)
    print(
        f"{record['status']} after {steps} steps; largest change {record['largest_change']:.0f}, "
        f"perceptibility {record['perceptibility']:.2g}"
    )
    print(f"results: {workdir}/")


if __name__ == "__main__":
    console.run(main)
