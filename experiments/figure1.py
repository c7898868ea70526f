"""Figure 1: one perturbation of one image that fools a segmentation network and a detector.

    python -m experiments.figure1
    python -m experiments.figure1 --models=fcn_alex,fr_zf_07 --seed=1

--models names a network that segments, then a detector. Both are attacked at once: `attack` takes a
pair of scores and a pair of targets. It sees the image rounded to whole grey levels, so all that is
shown and said is of adversarial.png. Images are tried in order until one is found whose
perturbation leaves no target active, stays below 10 grey levels everywhere, and after which the
whole detector finds none of what it found. If no image qualifies, the best is shown and the launch
says what it lacks.

Results go to --workdir: figure1.png, figure1.json, and the adversarial image, adversarial.png.
"""

import functools
import json
import pathlib

import jax
import numpy as np
from absl import app, flags
from PIL import Image

import dag_jax
from dag_jax import datasets, metrics, networks
from dag_jax.progress import progress
from dag_jax.report import figures
from dag_jax.runs import attacks, evaluation, rundir
from experiments.common import console, options

FLAGS = flags.FLAGS
options.define(
    __name__,
    *("models", "dataset", "split", "data_dir", "cache_dir", "canvas", "checkpoints"),
    *("image_ids", "limit", "max_steps", "step_size", "seed", "workdir"),
    models=["fcn_vgg", "fr_vgg_0712"],
    split="seg11valid",
    limit=30,
    max_steps=200,
    workdir="runs/figure1",
)
flags.DEFINE_float("fcn_margin", 0.0, "Logits by which a pixel's label must lose.")
flags.DEFINE_float("detector_margin", 3.0, "Logits by which a proposal's label must lose.")
options.check(options.not_negative, "fcn_margin", "detector_margin")


def joint_scores(fcn, detector, boxes, image):
    """Score an image with both networks."""
    return {"fcn": fcn(image), "detector": detector(image, boxes)}


def main(argv):
    """Attack images until one makes the figure; draw it."""
    console.start(argv)
    console.check_names("models", FLAGS.models, networks.NAMES + networks.BLACK_BOX)
    if len(FLAGS.models) != 2:
        raise app.UsageError(f"--models names {len(FLAGS.models)}, and the figure is of 2")
    folder = FLAGS.checkpoints and pathlib.Path(FLAGS.checkpoints)
    fcn, detector = (
        networks.load(name, miniature=True, checkpoint=folder and folder / f"{name}.safetensors")
        for name in FLAGS.models
    )
    if fcn.detects or not detector.detects:
        raise app.UsageError("--models: the first must segment, the second detect")
    margin = {"fcn": FLAGS.fcn_margin, "detector": FLAGS.detector_margin}
    examples = evaluation.load_examples(
        FLAGS.dataset,
        [FLAGS.split],
        data_dir=FLAGS.data_dir,
        cache_dir=FLAGS.cache_dir,
        limit=FLAGS.limit or None,
        image_ids=FLAGS.image_ids,
        canvas=FLAGS.canvas,
        network=fcn,
    )
    settings = options.settings(__name__, without=("workdir", "cache_dir"))
    workdir = rundir.claim(FLAGS.workdir, settings)

    attack = jax.jit(
        functools.partial(
            dag_jax.attack,
            max_steps=FLAGS.max_steps,
            step_size=FLAGS.step_size,
            margin=margin,
            rounded=True,  # so that the PNG itself fools
        )
    )
    pairs = zip(
        attacks.attack_inputs(fcn, examples, FLAGS.seed),
        attacks.attack_inputs(detector, examples, FLAGS.seed),
        strict=True,
    )
    best = None
    for example, (pixels, regions) in zip(
        progress(examples, desc="images tried", unit="image"), pairs, strict=True
    ):
        image = example["image"].astype(np.float32)
        score_fn = jax.tree_util.Partial(
            joint_scores, networks.score_fn(fcn), networks.score_fn(detector), *regions[3]
        )
        result = jax.device_get(attack(score_fn, image, {"fcn": pixels[2], "detector": regions[2]}))
        adversarial = attacks.perturbed(result, rounded=True)
        change = attacks.change(result, rounded=True)
        row = {"image_id": example["image_id"], "largest_change": 0.0}
        predictions = {}
        for name, network in (("fcn", fcn), ("detector", detector)):
            pair = evaluation.predict(network, np.stack([image, adversarial]))
            predictions[name] = pair
            row[name] = [round(evaluation.score([example], [one]), 2) for one in pair]
        row |= {
            "status": dag_jax.Status(int(result.status)).name,
            "num_steps": int(result.num_steps),
            "largest_change": float(np.abs(change).max()),
            "perceptibility": float(metrics.perceptibility(change)),
        }
        lacks = [
            text
            for wrong, text in (
                (
                    row["largest_change"] >= evaluation.NOTICEABLE,
                    f"a change below {evaluation.NOTICEABLE} grey levels",
                ),
                (row["status"] != "FOOLED", "an attack that finished"),
                (row["fcn"][1] > 5, "a segmentation that is wrong everywhere"),
                (row["detector"][1] > 5, "a detector that finds nothing"),
                (min(row["fcn"][0], row["detector"][0]) < 60, "networks right before the attack"),
            )
            if wrong
        ]
        if best is None or len(lacks) < len(best[1]):
            best = row, lacks, image, adversarial, change, predictions
        if not lacks:
            break

    row, lacks, image, adversarial, change, predictions = best
    drawn = []
    for name, network, unit in (("fcn", fcn, "mIoU"), ("detector", detector, "mAP")):
        before, after = row[name]
        title = (
            f"{evaluation.TITLES[network.name]} on {row['image_id']}, "
            f"the same perturbation in both rows: {unit} {before:.0f} before, "
            f"{after:.0f} after {row['num_steps']} steps"
        )
        drawn.append(figures.AttackRow(title, image, adversarial, *predictions[name]))
    figures.attack_figure(
        drawn,
        workdir / "figure1.png",
        class_names=datasets.CLASS_NAMES,
        palette=datasets.palette(len(datasets.CLASS_NAMES)),
    )
    Image.fromarray(adversarial.astype(np.uint8)).save(workdir / "adversarial.png")
    rundir.write(workdir / "figure1.json", json.dumps(row | {"lacks": lacks}, indent=2) + "\n")
    print(json.dumps(row, indent=2))
    if lacks:
        print(f"no image of {len(examples)} has everything; the one shown lacks {lacks}")
    print(f"results: {workdir}/")


if __name__ == "__main__":
    console.run(main)
