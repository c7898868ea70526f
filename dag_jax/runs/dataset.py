"""A whole dataset attacked: the one call behind a row of any table."""

from collections.abc import Callable, Sequence

import jax
from jax.sharding import Mesh

from dag_jax import files, models
from dag_jax.datasets.selection import ExampleSet
from dag_jax.engine.method import Method
from dag_jax.files import PathLike
from dag_jax.models import Detector, Segmenter
from dag_jax.runs import levels, provenance, rundir, scores
from dag_jax.runs.attacks import Plan, attack_missing
from dag_jax.runs.subject import Subject, subject_of
from dag_jax.runs.targets import paper_targets

ROW = "row.json"


def paper_method(model: Segmenter | Detector) -> Method:
    """Return the paper's attack with the margin and the most steps that a model declares."""
    about = models.about(model)
    return Method(margin=about.margin, max_steps=about.max_steps)


def attack_dataset(
    model: Segmenter | Detector | Subject,
    examples: ExampleSet,
    method: Method | None = None,
    folder: PathLike = "runs/dataset",
    *,
    seed: int = 0,
    slots: int | None = None,
    mesh: Mesh | None = None,
    targets_of: Callable = paper_targets,
    columns: Sequence[str] = scores.COLUMNS,
    store: str = levels.FLOAT32,
    accept_version: bool = False,
    progress: bool = True,
) -> dict:
    """Attack every example, score the model before and after, and keep all of it in a folder.

    What is finished stays: after a kill the same call goes on with the next image, and a call with
    more examples adds to the same folder. `dag_jax.runs.read` reads it.

    Args:
      model: a `models.Segmenter` or `models.Detector`.
      examples: a `datasets.ExampleSet`; labels are matched to the model's by the classes' names.
      method: the attack; None is `paper_method`.
      folder: where results are kept, the model's alone.
      seed: of the adversarial labels and permutations.
      slots: images under way at a time on each device; None is 2 on a CPU's, 16 on others.
      mesh: devices; None is all of this process.
      targets_of: what is attacked, as `targets.paper_targets`.
      columns: what is scored, of `scores.COLUMNS`.
      store: "float32" keeps perturbations as they are, "level256" in whole 256ths of a grey level:
        a third of the bytes.
      accept_version: go on in a folder that another version or device began; it is noted there.
      progress: show bars on stderr.

    Returns:
      The row, also written to row.json: scores in percent (orig, advr, advr_uint8, perm) with 95%
      intervals, steps, sizes, shares (0 to 1) of images that are fooled, classes that were
      compared.

    Raises:
      ValueError: for a model, examples or a folder that do not fit, before anything is attacked;
        at the end, for examples that could not be attacked.
      OSError: where results cannot be written.
    """
    subject = model if isinstance(model, Subject) else subject_of(model, examples)
    plan = Plan(subject, method or paper_method(subject.model), targets_of, seed, store)
    results = rundir.Results(
        folder, plan.manifest(), list(map(str, subject.ids)), accept_version=accept_version
    )
    attack_and_score(plan, results, slots=slots, mesh=mesh, columns=columns, progress=progress)
    return join_row(plan, results, columns=columns)


def attack_and_score(
    plan: Plan, results, *, slots=None, mesh=None, columns=scores.COLUMNS, progress=True
) -> None:
    """Attack and score what a folder lacks of this process's images.

    Args:
      plan: the attack.
      results: `rundir.Results`.
      slots: images under way at a time on each device.
      mesh: devices; None is all of this process.
      columns: what is scored.
      progress: show bars on stderr.
    """
    mesh = mesh or Mesh(jax.local_devices(), ("images",))
    about = plan.subject.about
    label = f"{about.title} margin {plan.method.describe()['margin']}"
    attack_missing(plan, results, slots=slots, mesh=mesh, label=label if progress else None)
    scores.keep(plan, results, columns=columns, mesh=mesh, progress=progress)


def join_row(
    plan: Plan, results, *, columns=scores.COLUMNS, subsets=None, complete=None, beside=None
) -> dict:
    """Return the row of results that are all there, and keep it; one that is kept is not remade.

    Args:
      plan: the attack.
      results: `rundir.Results`, complete.
      columns: what was scored.
      subsets: as in `scores.row_of`.
      complete: function of the row that returns it with what else a table has of it.
      beside: what JSON can hold, that `complete` depends on beside the results.
    """
    path = results.folder / ROW
    content = {
        "images": results.keys,
        "skipped": len(plan.subject.examples.skipped),
        "columns": list(columns),
        "records": results.records(),
        "beside": beside,
        "code": provenance.code_digest(),
        "accepted": rundir.accepted(results.folder),
    }
    made_of = files.sha256(files.canonical_json(content))
    if path.exists():
        row = files.load_json(path, digest=True)
        if row.pop("made_of", None) == made_of:
            return row
    row = scores.row_of(plan, results, columns=columns, subsets=subsets)
    if content["accepted"]:
        row["accepted_versions"] = content["accepted"]
    row = complete(row) if complete else row
    files.write_json(path, row | {"made_of": made_of})
    return row
