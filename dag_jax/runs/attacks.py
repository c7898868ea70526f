"""The attack on many images: the stream that they go through, and the records that are kept.

Shapes: `H W` pixels, `N` targets, `C` classes.
"""

import contextlib
import dataclasses
import functools
import itertools
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dag_jax import files, models
from dag_jax.engine.algorithm import Status, verdict_on
from dag_jax.engine.feed import Failure
from dag_jax.engine.method import Method
from dag_jax.engine.scoring import told_apart
from dag_jax.engine.stream import attack_stream
from dag_jax.errors import UserError
from dag_jax.progress import progress
from dag_jax.runs import buckets, levels, provenance, rundir
from dag_jax.runs.subject import Subject
from dag_jax.runs.targets import paper_targets
from dag_jax.runs.writers import Writers

WHITE = 255  # the largest grey level
# Images under way at a time on each device. A CPU core advances one after the other: several leave
# their steps to each other when they stop, so that devices wait less.
_SLOTS = {"cpu": 4}
_MANY_SLOTS = 16


class Plan(NamedTuple):
    """How the examples of a subject are attacked.

    Attributes:
      subject: what is attacked.
      method: how.
      targets_of: function of the subject, a `buckets.Group`, an example and the seed that returns
        (targets, inputs), as `targets.paper_targets` does.
      seed: of the adversarial labels.
      store: one of `levels.STORES`, how perturbations are kept.
    """

    subject: Subject
    method: Method
    targets_of: Callable = paper_targets
    seed: int = 0
    store: str = levels.FLOAT32

    def manifest(self, **more) -> dict:
        """Return the manifest of this plan's results; `more` are further entries."""
        subject = self.subject
        precision = getattr(subject.model, "precision", "float32")
        return {
            "model": subject.name,
            "title": subject.about.title,
            "task": subject.about.task,
            "classes": list(subject.about.classes),
            "weights_sha256": subject.weights_sha256,
            "method": self.method.describe(),
            "targets": name_of(self.targets_of),
            "seed": self.seed,
            "units": rundir.UNITS,
            "provenance": provenance.environment(),
            **({} if self.store == levels.FLOAT32 else {"store": self.store}),
            **({} if precision == "float32" else {"precision": precision}),
            **more,
        }


def name_of(function) -> str:
    """Return a text that names a function, or a partial of one, with its arguments."""
    if isinstance(function, functools.partial):
        options = [f"{name}={value!r}" for name, value in sorted(function.keywords.items())]
        return f"{name_of(function.func)}({', '.join([*map(repr, function.args), *options])})"
    return f"{function.__module__}.{function.__qualname__}"


def default_slots() -> int:
    """Return the platform's number of images under way at a time on each device."""
    return _SLOTS.get(jax.default_backend(), _MANY_SLOTS)


def grouping(subject: Subject) -> Callable:
    """Return the function of a row that gives the `buckets.Group` that its image goes through.

    It raises a ValueError for an image that is smaller than the model can see.
    """
    examples = subject.examples
    shapes = {example["image"].shape for example in examples}
    if len(shapes) == 1:
        (alike,) = buckets.group(subject.model, list(shapes))
        return lambda row: alike
    return lambda row: buckets.group_of(subject.model, examples[row]["image"].shape)


def _on(device, subject: Subject) -> Subject:
    """Return a subject whose model's parameters are on a device."""

    def put(leaf):
        return jax.device_put(leaf, device) if isinstance(leaf, np.ndarray | jax.Array) else leaf

    return dataclasses.replace(subject, model=jax.tree.map(put, subject.model))


def attack_inputs(plan: Plan, rows=None, devices=()):
    """Prepare examples for `attack_stream`.

    Args:
      plan: the attack.
      rows: which examples; None for all.
      devices: those that compute targets, in turn; one or none is JAX's default device.

    Yields:
      (row, image u8[H, W, 3], targets, inputs), arrays being NumPy's; a `Failure` for an image that
      is smaller than the model can see.
    """
    examples = plan.subject.examples
    if len(devices) > 1:
        subjects = [(device, _on(device, plan.subject)) for device in devices]
    else:
        subjects = [(None, plan.subject)]
    places = [(device, subject, grouping(subject)) for device, subject in subjects]
    chosen = range(len(examples)) if rows is None else rows
    for row, (device, subject, group_of) in zip(chosen, itertools.cycle(places), strict=False):
        try:
            group = group_of(row)
        except ValueError as error:
            yield Failure(row, error)
            continue
        # Without a choice of devices the caller's own default stays.
        with jax.default_device(device) if device else contextlib.nullcontext():
            targets, inputs = plan.targets_of(subject, group, examples[row], plan.seed)
        yield row, examples[row]["image"], targets, inputs


def bucket_for(subject: Subject):
    """Return the `bucket` of `attack_stream`; None where all images have one size."""
    one_size = len({example["image"].shape for example in subject.examples}) == 1
    return None if one_size or not hasattr(subject.model, "bucket") else models.bucket_score_fn


def open_stream(plan: Plan, inputs, *, count, slots=None, mesh=None, **options):
    """Return the `attack_stream` of a plan.

    Args:
      plan: the attack.
      inputs: of those to attack, from `attack_inputs`.
      count: number of images of the whole run, the most lanes. It stays the same when a run
        continues, since another number of lanes means other kernels on some devices.
      slots: images under way at a time on each device; None is `default_slots`.
      mesh: devices; None is all of this process.
      **options: of `attack_stream`.
    """
    mesh = mesh or _all_devices()
    slots = min(slots or default_slots(), -(-count // mesh.size))
    return attack_stream(
        models.score_fn(plan.subject.model),
        inputs,
        plan.method,
        slots=mesh.size * slots,
        mesh=mesh,
        bucket=bucket_for(plan.subject),
        **options,
    )


def _all_devices():
    return Mesh(jax.local_devices(), ("images",))


@jax.jit
def _verdict(method, score_fn, image, targets, inputs):
    return verdict_on(method, lambda seen: score_fn(seen, *inputs), image, targets)


def _png_verdict(plan, group, targets, inputs, png) -> tuple[int, bool]:
    """Return how many targets are active on a saved image, and whether it fools."""
    if not plan.subject.about.detects:
        targets = jax.tree.map(group.pad, targets)
    inputs = (*inputs, *group.extent(png.shape))
    image = group.pad(png.astype(np.float32))
    score_fn = told_apart(models.score_fn(group.model))
    number, fools = _verdict(plan.method, score_fn, image, targets, inputs)
    return int(number), bool(fools)


def change_of(image, adversarial) -> np.ndarray:
    """Return f32[H, W, 3], the change of an image, whose grey levels end at 0 and 255."""
    return np.asarray(adversarial, np.float32) - np.asarray(image, np.float32)


def record_of(image, attack, png_verdict: tuple[int, bool]) -> dict:
    """Return the record of an attack, which is kept with its perturbation.

    Args:
      image: u8[H, W, 3], the clean one.
      attack: an `Attack`, its arrays NumPy's.
      png_verdict: (targets active on the saved image, whether it fools).

    Returns:
      A dict of JSON values. Sizes and `fooled` are of the attacked image, within 0 to 255;
      `fooled_png` and `active_png` are of the saved PNG.
    """
    steps = int(attack.num_steps)
    change = change_of(image, attack.adversarial).astype(np.float64)
    status = Status(int(attack.status))
    return {
        "status": status.name,
        "num_steps": steps,
        "active_counts": np.asarray(attack.active_counts)[: steps + 1].tolist(),
        "perceptibility": float(np.sqrt((change**2).sum(axis=-1).mean()) / WHITE),
        "largest_change": float(np.abs(change).max()),
        "fooled": status == Status.FOOLED,
        "fooled_png": png_verdict[1],
        "active_png": png_verdict[0],
        "image_sha256": files.sha256(np.asarray(image)),
    }


def check_images(folder, records, examples) -> None:
    """Raise a ValueError where a record and the example of its name are of different images."""
    now = {str(example["image_id"]): example["image"] for example in examples}
    for record in records:
        key = record["key"]
        if key in now and record["image_sha256"] != files.sha256(now[key]):
            raise UserError(
                f"{folder} was made of another image of the name {key!r} than the dataset has now; "
                "give another folder (--workdir)"
            )


def attack_missing(plan: Plan, results: rundir.Results, *, slots=None, mesh=None, label) -> None:
    """Attack the examples that a folder of results lacks, and write each as it finishes.

    Other threads write, so that the devices go on meanwhile.

    Args:
      plan: the attack; its examples are the results' keys.
      results: where they are kept.
      slots: images under way at a time on each device; None is `default_slots`.
      mesh: devices; None is all of this process.
      label: what the progress bar is called; None for no bar.

    Raises:
      ValueError: at once where the folder's results are of other images; after all others for
        examples that cannot be attacked.
      OSError: where results cannot be written.
    """
    subject = plan.subject
    examples, group_of = subject.examples, grouping(subject)
    check_images(results.folder, results.done().values(), examples)
    todo, started, failed, waiting = results.todo(), time.perf_counter(), [], {}
    finished: list[float] = []
    worked = waited = 0.0  # seconds of the devices
    mesh = mesh or _all_devices()
    if not todo:
        return

    def on_failure(row, error):
        failed.append(f"{examples[row]['image_id']}: {error}")
        bar.write(failed[-1], file=sys.stderr)

    def inputs():
        for item in attack_inputs(plan, todo, mesh.local_devices):
            if not isinstance(item, Failure):
                waiting[item[0]] = item[2:]
            yield item

    def write(row, attack, problem, seconds):
        image, (targets, more) = examples[row]["image"], problem
        png = rundir.saved_pixels(image, attack.perturbation)
        verdict = _png_verdict(plan, group_of(row), targets, more, png)
        results.add(row, image, attack.perturbation, record_of(image, attack, verdict), seconds)

    def look(chunk):
        nonlocal worked, waited
        worked, waited = worked + chunk.seconds, waited + chunk.idle
        bar.set_postfix_str(f"devices {worked / (worked + waited):.0%} busy", refresh=False)

    options = {"slots": slots, "mesh": mesh, "on_failure": on_failure, "monitor": look}
    stream = open_stream(plan, inputs(), count=len(results.process_rows()), **options)
    with (
        progress(total=len(todo), desc=label, unit="image", disable=label is None) as bar,
        Writers(write) as writers,
    ):
        for row, attack in stream:
            finished.append(time.perf_counter() - started)
            seconds = {"finished": round(finished[-1], 3)}
            if len(finished) > 1:  # what comes first waits for what has to be compiled
                seconds["since"] = round(finished[-1] - finished[-2], 3)
            writers.submit(row, attack, waiting.pop(row), seconds)
            bar.update()
    if failed:
        raise UserError(
            f"{len(failed)} of {len(todo)} images could not be attacked; the others are finished "
            f"and kept in {results.folder}. --image_ids can leave these out: {'; '.join(failed)}"
        )
