"""Attack any photograph: the PNG that fools a network, the panels, and a record.

    python -m experiments.attack_image --image=photo.jpg --models=fcn_vgg
    python -m experiments.attack_image --image=photo.jpg --models=fr_vgg_07 --target=background
    python -m experiments.attack_image --image=photo.jpg --models=fcn_vgg --target=drawing.png
    python -m experiments.attack_image --image=photo.jpg --models=fcn_vgg --nominiature \
        --checkpoint=fcn8s-heavy-pascal.safetensors

A photograph comes without ground truth, so what is attacked is what the network itself says of it:
the class an FCN gives to each pixel; the objects a detector finds with a score of 0.5 or more, by
which its proposals are labelled. The attack is successful where the network changes its mind, right
or wrong. The miniatures that ship with the package have seen rendered scenes alone, and say little
that is true of a photograph; `experiments.train` and converted weights give networks that do.

The attack scores the image as rounded to whole grey levels, so the PNG itself fools; what is
recorded of it was measured on the file as read back. A target rests once its label has lost,
whichever class has won; a larger --margin drives on towards --target.

Results go to --workdir: adversarial.png; clean.png, the photograph upright and scaled, which it
differs from; attack_image.png, the panels; attack_image.json, the record. Where there is nothing to
attack (a detector that finds no object, say), nothing is written and the exit code is 2.
"""

import hashlib
import json
import pathlib
import sys

import jax
import numpy as np
from absl import app, flags
from PIL import Image

import dag_jax
from dag_jax import datasets, detection, metrics, networks
from dag_jax.datasets import photographs
from dag_jax.errors import UserError
from dag_jax.networks import zoo
from dag_jax.progress import progress
from dag_jax.report import figures
from dag_jax.runs import attacks, evaluation, rundir
from experiments.common import console, options

CANVAS = 128  # pixels: what the miniatures were trained at
LONG_NAME = 24  # letters of a file's name that the panels have room for
SAME_PLACE = 0.5  # IoU with which a detection of the same class is the same object
CHUNK = 5  # iterations between two looks at the progress
FILES = {
    "adversarial": "adversarial.png",
    "clean": "clean.png",
    "panels": "attack_image.png",
    "record": "attack_image.json",
}


def check_canvas(side):
    """Raise UserError for a --canvas that is neither 0 nor a side that networks see."""
    least, most = options.SIDES
    if side and not least <= side <= most:
        raise UserError(f"must be 0, or {least} to {most} pixels")


FLAGS = flags.FLAGS
flags.DEFINE_string("image", None, "The photograph: JPEG, PNG, anything that Pillow reads.")
flags.mark_flag_as_required("image")
flags.DEFINE_string("checkpoint", None, "A .safetensors to use; a full-size network needs one.")
flags.DEFINE_integer(
    "canvas",
    None,
    "Scale the photograph to a square of this many pixels; 0 leaves it as it is. Default: "
    f"{CANVAS} for a miniature, which was trained on squares of that size and sees only objects "
    "of the sizes they have there; 0 for a full-size network: an FCN takes any size, in memory and "
    "time that grow with the pixels, a Faster R-CNN scales on its own.",
    0,
)
flags.DEFINE_string(
    "target",
    "permute",
    "What to see instead. permute: one permutation of the classes (the paper). absent: classes "
    "that the network does not see there (the authors' release). A class's name, background "
    "included: that class everywhere. A file: a drawn segmentation of the photograph's size for an "
    "FCN, grey levels being class indices, or in the colours of VOC; void is left alone.",
)
options.define(
    __name__,
    *("models", "miniature", "max_steps", "step_size", "margin", "seed", "workdir"),
    models=["fcn_vgg"],
    workdir="runs/attack_image",
)
options.check(options.not_empty, "image", "checkpoint", "target")
options.check(check_canvas, "canvas")


def strong(detections):
    """Return the detections that count as objects, which are those that the figure shows."""
    rows = detections.scores >= figures.MIN_SCORE
    return metrics.Detections(
        detections.boxes[rows], detections.classes[rows], detections.scores[rows]
    )


def own_truth(network, example):
    """Return an example with what the network says of it for ground truth, and that prediction."""
    image = example["image"][None]
    (prediction,) = evaluation.predict(network, image)
    if not network.detects:
        mask = prediction[:, :, None].astype(np.uint8)
        return {**example, "mask": mask, "has_mask": True}, prediction
    found = strong(prediction)
    objects = {
        "boxes": found.boxes,
        "label": found.classes,
        "difficult": np.zeros(len(found.scores), bool),
    }
    return {**example, "objects": objects}, prediction


def read_drawing(target, shape):
    """Return the segmentation that --target names and its SHA-256, or None twice.

    Raises:
      ValueError: where it is no rule, class or file, and where the drawing is damaged or its size
        differs from the photograph's shape (H, W).
    """
    if target in ("permute", "absent", *datasets.CLASS_NAMES):
        return None, None
    if not pathlib.Path(target).is_file():
        raise UserError(
            f"--target={target} is no rule (permute, absent), no class "
            f"({', '.join(datasets.CLASS_NAMES)}) and no file"
        )
    drawing, sha256 = photographs.read_class_map(target)
    if drawing.shape != shape:
        raise UserError(
            f"{target} has {drawing.shape[1]} x {drawing.shape[0]} pixels, the upright photograph "
            f"has {shape[1]} x {shape[0]}"
        )
    return drawing, sha256


def aimed(targets, key, target, drawing, *, first_class):
    """Return targets with the adversarial labels of --target.

    Args:
      targets: Targets of `attacks.attack_inputs`, which are permuted.
      key: JAX key of the image.
      target: the flag: 'permute', 'absent', a class's name; else `drawing` counts.
      drawing: i32[H, W] classes, or None.
      first_class: lowest class that 'absent' takes: 1 for a detector.
    """
    labels, valid = targets.labels, targets.valid
    if target == "permute":
        return targets
    if target == "absent":
        adversarial = dag_jax.absent_labels(
            key, labels, evaluation.NUM_CLASSES, valid=valid, first_class=first_class
        )
    elif drawing is None:
        adversarial = datasets.CLASS_NAMES.index(target)
    else:
        adversarial = drawing
    return jax.device_get(dag_jax.make_targets(labels, adversarial, valid))


@jax.jit
def advance(score_fn, state, targets, step_size, margin):
    """Advance an attack by up to CHUNK iterations, scoring it as it will be saved."""
    end = state.attack.num_steps + CHUNK

    def goes_on(state):
        running = state.attack.status == dag_jax.Status.RUNNING
        return running & (state.attack.num_steps < end)

    def one(state):
        return dag_jax.step(
            score_fn, state, targets, step_size=step_size, margin=margin, rounded=True
        )

    return jax.lax.while_loop(goes_on, one, state)


@jax.jit
def count_active(score_fn, image, targets, margin):
    """Return how many targets are active in an image."""
    return dag_jax.active_targets(score_fn(image), targets, margin).sum()


def attack(score_fn, image, targets, *, max_steps, step_size, margin, label):
    """Attack one image with a progress bar of steps and active targets; return its `Attack`."""
    state = dag_jax.init(image, targets, max_steps=max_steps)
    with progress(total=max_steps, desc=label, unit="step") as bar:
        while int(state.attack.status) == dag_jax.Status.RUNNING:
            state = advance(score_fn, state, targets, step_size, margin)
            steps = int(state.attack.num_steps)
            bar.set_postfix(active=int(state.attack.active.sum()), refresh=False)
            bar.update(steps - bar.n)
    return jax.device_get(state.attack)


def outcome(before, after, targets):
    """Return what an attack did to the predictions, as the record and the title have it.

    Args:
      before: the prediction on the clean image: labels i32[H, W], or `Detections`.
      after: the prediction on the adversarial image.
      targets: what was attacked.

    Returns:
      (dict for the record, one line of text).
    """
    if not isinstance(before, metrics.Detections):
        changed = float((before != after).mean())
        asked = float((after == targets.adversarial)[targets.valid].mean())
        facts = {"pixels_changed": changed, "targets_as_asked": asked}
        return facts, f"{100 * changed:.1f}% of the pixels change class"
    objects, remaining = strong(before), strong(after)
    overlap = np.asarray(detection.iou(objects.boxes, remaining.boxes))
    same = (objects.classes[:, None] == remaining.classes[None, :]) & (overlap >= SAME_PLACE)
    kept, other = int(same.any(axis=1).sum()), int((~same.any(axis=0)).sum())
    count = len(objects.scores)
    facts = {
        "min_score": figures.MIN_SCORE,
        "objects_before": count,
        "objects_kept": kept,
        "objects_other": other,
        "detections_before": listed(before),
        "detections_after": listed(after),
    }
    return facts, f"objects found: {count} before; {kept} of these and {other} other after"


def read_back(path, network, score_fn, clean, before, targets, margin):
    """Measure the saved image.

    Returns:
      (AttackRow's adversarial, before and after; dict for the record; text of it).
    """
    adversarial = photographs.read_photograph(path).pixels
    image = adversarial.astype(np.float32)
    change = image - clean
    (after,) = evaluation.predict(network, image[None])
    facts, text = outcome(before, after, targets)
    active = int(count_active(score_fn, image, targets, margin))
    count = int(targets.valid.sum())
    facts = {
        "targets": count,
        "targets_active": active,
        "perceptibility": float(metrics.perceptibility(change)),
        "largest_change": float(np.abs(change).max()),
        **facts,
    }
    return (adversarial, before, after), facts, f"{text}, {active} of {count} targets left"


def listed(detections):
    """Return all that a detector gave, by descending score, as JSON holds it."""
    rows = zip(detections.classes, detections.scores, detections.boxes, strict=True)
    return [
        {
            "class": datasets.CLASS_NAMES[index],
            "score": round(float(score), 4),
            "box": [round(float(corner), 2) for corner in box],
        }
        for index, score, box in rows
    ]


def main(argv):
    """Read the photograph, ask the network, attack, save, read back, record."""
    console.start(argv)

    # 1. Everything that can be wrong is read before any work.
    if not (FLAGS.miniature or FLAGS.checkpoint):
        raise app.UsageError("--nominiature needs --checkpoint: no full-size weights are shipped")
    console.check_names("models", FLAGS.models, networks.NAMES + networks.BLACK_BOX)
    if len(FLAGS.models) > 1:
        raise app.UsageError(f"--models names {len(FLAGS.models)}, and a photograph is of one")
    (model_name,) = FLAGS.models
    photograph = photographs.read_photograph(FLAGS.image)
    drawing, drawing_sha256 = read_drawing(FLAGS.target, photograph.pixels.shape[:2])
    weights = FLAGS.checkpoint or zoo.CHECKPOINTS / f"{model_name}.safetensors"
    network = networks.load(model_name, miniature=FLAGS.miniature, checkpoint=weights)
    if network.detects and drawing is not None:
        raise app.UsageError(f"--target={FLAGS.target} is a segmentation, {model_name} detects")
    title = evaluation.TITLES[network.name]
    resolved = {
        "canvas": CANVAS * FLAGS.miniature if FLAGS.canvas is None else FLAGS.canvas,
        "max_steps": FLAGS.max_steps or evaluation.MAX_STEPS[network.detects],
        "margin": evaluation.MARGINS[network.detects] if FLAGS.margin is None else FLAGS.margin,
        "target": FLAGS.target if drawing is None else pathlib.Path(FLAGS.target).name,
        "target_sha256": drawing_sha256,
        "image": photograph.name,
        "image_sha256": photograph.sha256,
        "weights_sha256": hashlib.sha256(pathlib.Path(weights).read_bytes()).hexdigest(),
    }
    settings = options.settings(__name__, without=("workdir", "checkpoint")) | resolved
    max_steps, step_size, margin = (settings[name] for name in ("max_steps", "step_size", "margin"))

    # 2. What the network says, which is what it is to unlearn.
    height, width = photograph.pixels.shape[:2]
    example = {
        "image_id": pathlib.Path(photograph.name).stem,
        "image": photograph.pixels,
        "mask": np.zeros((height, width, 1), np.uint8) if drawing is None else drawing[:, :, None],
        "objects": {"boxes": np.zeros((0, 4), np.float32)},
    }
    if settings["canvas"]:
        example = evaluation.resize(example, settings["canvas"])
    drawing = None if drawing is None else example["mask"][:, :, 0]
    example, before = own_truth(network, example)
    if network.detects and not len(example["objects"]["label"]):
        print(
            f"{title} finds no object in {photograph.name} that scores {figures.MIN_SCORE}: there "
            "is nothing to attack",
            file=sys.stderr,
        )
        return 2
    ((_, clean, targets, inputs),) = attacks.attack_inputs(network, [example], FLAGS.seed)
    key = dag_jax.image_key(FLAGS.seed, example["image_id"])
    targets = aimed(targets, key, FLAGS.target, drawing, first_class=int(network.detects))
    if not targets.valid.any():
        print(
            f"{title} has no target in {photograph.name}: all that it finds there is as "
            f"--target={FLAGS.target} asks already",
            file=sys.stderr,
        )
        return 2
    score_fn = networks.score_fn(network, *inputs)
    numbers = {"max_steps": max_steps, "step_size": step_size, "margin": margin}
    dag_jax.check(score_fn, clean, targets, **numbers)
    workdir = rundir.claim(FLAGS.workdir, settings)
    if (workdir / FILES["record"]).exists():
        print(f"this attack is done: {workdir}/")
        return 0

    # 3. The attack, and what is true of the file.
    result = attack(score_fn, clean, targets, label=title, **numbers)
    saved = np.asarray(dag_jax.perturb(result.image, result.perturbation, rounded=True))
    Image.fromarray(clean).save(workdir / FILES["clean"])
    Image.fromarray(saved.astype(np.uint8)).save(workdir / FILES["adversarial"])
    path = workdir / FILES["adversarial"]
    panels, facts, text = read_back(path, network, score_fn, clean, before, targets, margin)
    steps = int(result.num_steps)
    record = {
        **settings,
        "exif_orientation": photograph.orientation,
        "photograph_size": [width, height],
        "size": [clean.shape[1], clean.shape[0]],
        "status": dag_jax.Status(int(result.status)).name,
        "num_steps": steps,
        "active_counts": result.active_counts[: steps + 1].tolist(),
        **facts,
        "files": FILES,
    }
    name = photograph.name
    short = name if len(name) <= LONG_NAME else f"{name[: LONG_NAME - 1]}…"
    row = figures.AttackRow(f"{title} on {short}, {steps} steps: {text}", clean, *panels)
    figures.attack_figure(
        [row],
        workdir / FILES["panels"],
        class_names=datasets.CLASS_NAMES,
        palette=datasets.palette(len(datasets.CLASS_NAMES)),
    )
    lines = ",\n".join(f"  {json.dumps(entry)}: {json.dumps(record[entry])}" for entry in record)
    rundir.write(workdir / FILES["record"], f"{{\n{lines}\n}}\n")
    print(
        f"{title} on {name}: {record['status']} after {steps} steps; {text}; "
        f"largest change {facts['largest_change']:.0f}, "
        f"perceptibility {facts['perceptibility']:.2g}"
    )
    print(f"results: {workdir}/")
    return 0


if __name__ == "__main__":
    console.run(main)
