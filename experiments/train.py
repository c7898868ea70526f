r"""Train one network of Table 1 or of the black box, miniature or full size.

    python -m experiments.train --network=fcn_vgg
    python -m experiments.train --network=fcn_vgg --dataset=voc --data_dir=VOCdevkit --canvas=128 \
        --splits=voc2012_seg_train_aug --test_split=voc2012_seg_val --augment
    python -m experiments.train --network=fcn_vgg_star --nominiature --nobatch_norm ...
                    full size, from ImageNet: `experiments.fetch_weights --list` has the whole line

Results go to --workdir, by default runs/train/<network>: the checkpoint, curve.png, curve.jsonl,
and the state that a killed run goes on from when the same command is started again; a folder of
another run is refused. The checkpoint carries its record: command, splits, seed, score. So do the
miniatures that ship with the package: `dag_jax.weights.store.load(path)[1]`.

Training uses batch normalisation; the checkpoint has it folded into the convolutions, which leaves
the network of the paper. Segmentation weighs background down, since most pixels are background.
A detector's features also learn to name the class of each cell's mask, by one linear layer that no
checkpoint keeps: there is no ImageNet for rendered scenes to start from. `--noise` adds Gaussian
noise to each image, of a strength drawn anew: without it a network of faint classes fails on any
noise, and the permuted control says nothing.
"""

import dataclasses
import functools
import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from flax import traverse_util

from dag_jax import datasets, files, models, networks
from dag_jax.errors import UserError, parsing
from dag_jax.networks import layers, losses, zoo
from dag_jax.progress import progress
from dag_jax.report import lineplot
from dag_jax.runs import evaluation, rundir
from dag_jax.runs.subject import subject_of
from dag_jax.weights import store
from experiments.common import batches, console, options

# The lists of the paper, by network; the black box learns from the longer ones.
SPLITS = {
    "fcn_alex": ("fcn_train",),
    "fcn_alex_star": ("fcn_star_train",),
    "fcn_vgg": ("fcn_train",),
    "fcn_vgg_star": ("fcn_star_train",),
    "fr_zf_07": ("voc07_trainval",),
    "fr_zf_0712": ("voc07_trainval", "voc12_trainval"),
    "fr_vgg_07": ("voc07_trainval",),
    "fr_vgg_0712": ("voc07_trainval", "voc12_trainval"),
    "fcn_resnet": ("fcn_star_train",),
    "fr_resnet": ("voc07_trainval", "voc12_trainval"),
}
# Flags that change no update.
UNRECORDED = ("cache_dir", "data_dir", "score_every", "score_images", "publish", "workdir")
_MASK_LAYER = "mask_layer"  # name of the linear layer that training alone has

FLAGS = flags.FLAGS
flags.DEFINE_enum(
    "network", None, networks.NAMES + networks.BLACK_BOX, "Which network to train.", required=True
)
options.define(
    __name__,
    *("miniature", "dataset", "data_dir", "cache_dir", "canvas", "skip_bad", "seed", "workdir"),
)
options.strings("splits", None, "Splits to train on. Default: the network's.")
options.string("test_split", None, "Split to score on. Default: the network's.")
options.integer("steps", 700, "Updates.", 2)
options.integer("batch_size", 16, "Images of an update.")
options.number("learning_rate", 4e-3, "Largest learning rate, cosine schedule.", options.positive)
options.number("weight_decay", 1e-4, "Weight decay.")
options.number("background_weight", 0.25, "Weight of background in the FCN's loss.")
options.number("mask_weight", 1.0, "Weight of a detector's loss of masks; see above.")
options.number("noise", 1.5, "Largest standard deviation of noise, in grey levels.")
options.number("tint", 0.0, "Largest standard deviation of colour casts, in grey levels.")
flags.DEFINE_bool("augment", False, "Mirror and crop at random: for photographs, not for scenes.")
flags.DEFINE_bool("batch_norm", True, "Normalise; without it, --initial goes on where it was.")
options.string("initial", None, "Checkpoint whose layers to start from: ImageNet's, say.")
options.integer("score_every", 100, "Updates between two scores and saved states.")
options.integer("score_images", 40, "Test images of those scores.")
flags.DEFINE_bool("publish", False, "Also write the checkpoint into the package.")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state that a killed run continues from."""

    step: jax.Array  # i32 updates made
    parameters: dict
    statistics: dict  # running means and variances of batch normalisation
    optimizer: optax.OptState


def cell_labels(module, masks, shape):
    """Return the mask's class at the centre of each cell of a detector's map.

    Args:
      module: a `FasterRCNN`.
      masks: [B, H, W], of the user's images.
      shape: (h, w), cells of the map.

    Returns:
      i32[B, h, w], void where a cell's centre lies beyond the image.
    """
    factor = module.canvas((*masks.shape[1:], 3))[1]
    rows, columns = (
        ((np.arange(cells) + 0.5) * module.stride / factor).astype(int) for cells in shape
    )
    labels = jnp.take(masks, jnp.asarray(rows), axis=1, mode="fill", fill_value=datasets.VOID)
    labels = jnp.take(labels, jnp.asarray(columns), axis=2, mode="fill", fill_value=datasets.VOID)
    return labels.astype(jnp.int32)


def mask_loss(module, variables, images, masks, class_weights):
    """Return the loss of naming the class at the centre of each cell from a detector's features."""
    features, _ = module.apply(variables, images, True, method="features", mutable=["batch_stats"])
    scores = features @ variables["params"][_MASK_LAYER]
    labels = cell_labels(module, masks, features.shape[1:3])
    return losses.segmentation_loss(scores, labels, class_weights=class_weights)


@functools.partial(jax.jit, static_argnames=("module", "optimizer"), donate_argnums=0)
def update(state, key, batch, spread, weights, *, module, optimizer):
    """Make one update; return the new state and the loss.

    Args:
      state: TrainState, whose memory is reused.
      key: of noise and samples.
      batch: (images, masks, boxes, classes, valid) as `batches.stack` gives them.
      spread: (noise, tint), the largest standard deviations in grey levels of what is added to each
        value of an image and to each channel of it.
      weights: (class_weights f32[C] of segmentation, weight of the mask loss).
      module: the network with batch normalisation.
      optimizer: optax transformation.
    """
    class_weights, mask_weight = weights
    images, masks, boxes, classes, valid = batch
    noise_key, tint_key, strength_key, sample_key = jax.random.split(key, 4)
    images = images.astype(jnp.float32)
    count = images.shape[0]
    shapes = (noise_key, images.shape), (tint_key, (count, 1, 1, 3))
    strengths = jax.random.uniform(strength_key, (2, count, 1, 1, 1))
    for largest, strength, (normal_key, shape) in zip(spread, strengths, shapes, strict=True):
        images = images + largest * strength * jax.random.normal(normal_key, shape)

    def loss(parameters):
        variables = {"params": parameters, "batch_stats": state.statistics}
        if isinstance(module, zoo.FasterRCNN):
            value, _, statistics = losses.detection_loss(
                module,
                variables,
                sample_key,
                images,
                boxes,
                classes,
                valid,
                num_anchors=64,
                num_regions=48,
                num_proposals=module.post_nms,
                num_jittered=8,
                foreground_fraction=0.5,
            )
            masked = mask_loss(module, variables, images, masks, class_weights)
            return value + mask_weight * masked, statistics
        scores, updates = module.apply(variables, images, True, mutable=["batch_stats"])
        value = losses.segmentation_loss(
            scores, masks.astype(jnp.int32), class_weights=class_weights
        )
        return value, updates.get("batch_stats", {})

    (value, statistics), gradient = jax.value_and_grad(loss, has_aux=True)(state.parameters)
    change, opt_state = optimizer.update(gradient, state.optimizer, state.parameters)
    parameters = optax.apply_updates(state.parameters, change)
    return TrainState(state.step + 1, parameters, statistics, opt_state), value


def start_from(path, parameters, statistics):
    """Return parameters and statistics, replaced by those that a checkpoint has.

    Args:
      path: a checkpoint, or the unfolded.safetensors of a run.
      parameters: nested dict.
      statistics: nested dict of batch normalisation, which only unfolded.safetensors has.

    Raises:
      ValueError: where the checkpoint cannot be read, or shares nothing.
    """
    start = store.load(path)[0]
    start = traverse_util.flatten_dict(start if "params" in start else {"params": start})
    flat = traverse_util.flatten_dict({"params": parameters, "batch_stats": statistics})
    same = [name for name, leaf in start.items() if name in flat and flat[name].shape == leaf.shape]
    if not same:
        raise UserError(f"{path} has no parameter of the name and shape of any of this network")
    print(f"{len(same)} of {len(flat)} parameters from {path}", file=sys.stderr)
    flat |= {name: jnp.asarray(start[name]) for name in same}
    merged = traverse_util.unflatten_dict(flat)
    return merged["params"], merged.get("batch_stats", {})


def save_state(path, state):
    """Write a state, whole or not at all."""
    leaves = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    files.write(path, files.pack(leaves, {"updates": int(state.step)}))


def restore_state(path, state):
    """Return the state that `save_state` wrote, of the structure of `state`.

    Raises:
      UserError: where the file is damaged or belongs to another network.
    """
    _, arrays = files.load(path)
    leaves, structure = jax.tree.flatten(state)
    saved = [arrays.get(str(i)) for i in range(len(leaves))]
    if len(arrays) != len(leaves) or any(map(_differ, leaves, saved)):
        raise UserError(f"{path} holds the state of another network; remove it to start anew")
    return jax.tree.unflatten(structure, map(jnp.asarray, saved))


def _differ(leaf, saved):
    return saved is None or saved.shape != jnp.shape(leaf)


def read_examples(splits, canvas, *, with_mask):
    """Read splits one after the other.

    Raises:
      UserError: as `datasets.load_examples` says, and for images of several sizes.
    """
    parts = [
        datasets.load_examples(
            FLAGS.dataset,
            split,
            data_dir=FLAGS.data_dir,
            cache_dir=FLAGS.cache_dir,
            canvas=canvas,
            with_mask=with_mask,
            skip_bad=FLAGS.skip_bad,
        )
        for split in splits
    ]
    for text in [text for part in parts for text in part.skipped]:
        console.say(f"left out: {text}")
    whole = [example for part in parts for example in part]
    if len({example["image"].shape for example in whole}) > 1:
        raise UserError(
            f"the images of {','.join(splits)} have several sizes; --canvas scales them to one"
        )
    return datasets.ExampleSet(whole, parts[0].classes, void=parts[0].void)


def main(argv):
    """Train, score, save."""
    console.start(argv)
    # 1. The network as it trains and as it ends, and the examples. All that can be wrong is read
    # before anything is written.
    if FLAGS.initial:
        store.load(FLAGS.initial)
    load = functools.partial(networks.load, FLAGS.network, miniature=FLAGS.miniature)
    network = jax.eval_shape(functools.partial(load, random=True))  # parameters come with training
    module = networks.build(FLAGS.network, miniature=FLAGS.miniature, batch_norm=FLAGS.batch_norm)
    about = models.about(network)
    splits = FLAGS.splits or list(SPLITS[FLAGS.network])
    test_split = FLAGS.test_split or network.split
    settings = options.settings(__name__, UNRECORDED)
    settings |= {"splits": splits, "test_split": test_split}
    arrays = batches.stack(read_examples(splits, FLAGS.canvas, with_mask=not about.detects))
    test = read_examples([test_split], FLAGS.canvas, with_mask=not about.detects)
    subject = subject_of(network, test, weights_sha256="none yet")
    if len(arrays[0]) < FLAGS.batch_size:
        raise UserError(
            f"{','.join(splits)} has {len(arrays[0])} examples, --batch_size is {FLAGS.batch_size}"
        )

    # 2. Where the network starts.
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, FLAGS.learning_rate, min(50, FLAGS.steps // 10 + 1), FLAGS.steps, 1e-5
    )
    # Folded weights differ in size by orders of magnitude from layer to layer, so without batch
    # normalisation a layer's change is measured by its own size (LAMB).
    rule = optax.adamw if FLAGS.batch_norm else optax.lamb
    optimizer = optax.chain(
        optax.clip_by_global_norm(5.0), rule(schedule, weight_decay=FLAGS.weight_decay)
    )
    canvas = FLAGS.canvas or 128
    key = jax.random.key(FLAGS.seed)
    variables = jax.jit(module.init)(key, jnp.zeros((canvas, canvas, 3)))
    parameters, statistics = variables["params"], variables.get("batch_stats", {})
    if about.detects:
        parameters[_MASK_LAYER] = jnp.zeros((module.backbone.widths[-1], len(about.classes)))
    if FLAGS.initial:
        parameters, statistics = start_from(FLAGS.initial, parameters, statistics)
    state = TrainState(jnp.int32(0), parameters, statistics, optimizer.init(parameters))
    manifest = settings | {"data_dir": FLAGS.data_dir}
    workdir = rundir.claim(FLAGS.workdir or f"runs/train/{FLAGS.network}", manifest)
    saved = workdir / "state.safetensors"
    if files.exists(saved):
        state = restore_state(saved, state)
        print(f"going on after {int(state.step)} of {FLAGS.steps} updates", file=sys.stderr)

    class_weights = jnp.ones(len(about.classes)).at[about.background].set(FLAGS.background_weight)
    weights = class_weights, jnp.float32(FLAGS.mask_weight)

    def folded(state):
        parameters = layers.fold_batch_norm(state.parameters, state.statistics)
        parameters.pop(_MASK_LAYER, None)
        return dataclasses.replace(network, parameters=parameters)

    def scored(network, examples):
        predictions = evaluation.predict(network, evaluation.clean_images(examples))
        return evaluation.score(subject, examples, predictions)

    # 3. The updates. The examples of one depend on the seed and its number alone.
    curve_path = workdir / "curve.jsonl"
    curve = []
    if files.exists(curve_path):
        with parsing(curve_path):
            points = map(json.loads, curve_path.read_text().splitlines())
            curve = [point for point in points if point["step"] <= int(state.step)]
    few = subject.examples[: FLAGS.score_images]
    bar = progress(total=FLAGS.steps, initial=int(state.step), desc=FLAGS.network)
    started, recent = time.monotonic(), []
    for step in range(int(state.step), FLAGS.steps):
        rng = np.random.default_rng([FLAGS.seed, step])
        chosen = rng.choice(len(arrays[0]), FLAGS.batch_size, replace=False)
        images, masks, boxes, classes, valid = (array[chosen] for array in arrays)
        if FLAGS.augment:
            images, masks, boxes, valid = batches.draw_crops(rng, images, masks, boxes, valid)
        state, loss = update(
            state,
            jax.random.fold_in(key, step),
            (images, masks, boxes, classes, valid),
            (jnp.float32(FLAGS.noise), jnp.float32(FLAGS.tint)),
            weights,
            module=module,
            optimizer=optimizer,
        )
        recent.append(float(loss))
        if not np.isfinite(recent[-1]):
            raise UserError(
                f"the loss is {recent[-1]} at update {step + 1}; try a lower --learning_rate"
            )
        bar.update()
        if (step + 1) % FLAGS.score_every == 0 or step + 1 == FLAGS.steps:
            point = {
                "step": step + 1,
                "loss": float(np.mean(recent)),
                "score": scored(folded(state), few),
                "seconds": round(time.monotonic() - started, 1),
            }
            recent = []
            curve.append(point)
            bar.set_postfix(loss=f"{point['loss']:.3f}", score=f"{point['score']:.1f}")
            files.write(curve_path, "".join(json.dumps(point) + "\n" for point in curve))
            lineplot.training_curve(curve, FLAGS.network, workdir / "curve.png")
            save_state(saved, state)
    bar.close()

    # 4. The checkpoint, as anybody will read it: rounded to half precision, then scored.
    path = workdir / f"{FLAGS.network}.safetensors"
    set_flags = [flag for flag in FLAGS.flags_by_module_dict()[sys.argv[0]] if flag.present]
    places = ("workdir", "data_dir", "cache_dir", "publish")  # say nothing of the result
    command = ["python -m experiments.train"]
    command += [flag.serialize() for flag in set_flags if flag.name not in places]
    record = {**settings, "command": " ".join(command)}
    if FLAGS.initial:
        record["initial_record"] = store.load(FLAGS.initial)[1]
    store.save(path, folded(state).parameters, record, half=True)
    result = scored(load(checkpoint=path), subject.examples)
    record |= {"score": round(result, 2), "test_images": len(test)}
    for target in [path] + [zoo.CHECKPOINTS / path.name] * FLAGS.publish:
        store.save(target, folded(state).parameters, record, half=True)
    unfolded = {"params": state.parameters, "batch_stats": state.statistics}
    if state.statistics:
        store.save(workdir / "unfolded.safetensors", unfolded, record)
    kind = "mAP" if about.detects else "mIoU"
    print(f"{FLAGS.network}: {kind} {result:.2f} on {len(test)} images of {test_split}")
    print(f"checkpoint: {path}")


if __name__ == "__main__":
    console.run(main)
