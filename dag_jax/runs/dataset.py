"""The attack on a whole dataset: the one call behind a row of any table."""

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
    """Return the paper's attack with the model's own margin and maximum number of steps."""
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
    """Attack every example, score the model before and after, and write all of it to a folder.

    Finished images stay: after a kill the same call continues with the next image, and a call with
    more examples adds to the same folder. `dag_jax.runs.read` reads the folder.

    Args:
      model: a `models.Segmenter` or `models.Detector`.
      examples: a `datasets.ExampleSet`; labels are matched to the model's by the classes' names.
      method: the attack; None is `paper_method`.
      folder: where results are written; a folder of its own for each model.
      seed: of the adversarial labels and permutations.
      slots: images under way at a time on each device; None is 4 on a CPU's, 16 on others.
      mesh: devices; None is all of this process.
      targets_of: the function that finds targets, such as `targets.paper_targets`.
      columns: which of `scores.COLUMNS` to score.
      store: "float32" keeps perturbations as they are, "level256" in whole 256ths of a grey level:
        a third of the bytes.
      accept_version: continue a folder that another version or device began. The folder notes it.
      progress: show bars on stderr.

    Returns:
      The row, which is also written to row.json: scores in percent (orig, advr, advr_uint8, perm)
      with 95% intervals, steps, sizes, shares (0 to 1) of fooled images, and the compared classes.

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
    """Attack and score this process's images as far as the folder lacks them.

    Args:
      plan: the attack.
      results: `rundir.Results`.
      slots: images under way at a time on each device.
      mesh: devices; None is all of this process.
      columns: which columns to score.
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
    """Return the row of complete results, and write it; a row that is there already is read.

    Args:
      plan: the attack.
      results: `rundir.Results`, complete.
      columns: the columns that were scored.
      subsets: as in `scores.row_of`.
      complete: function that returns the row with further entries of the table.
      beside: JSON values that `complete` depends on besides the results.
    """
    path = results.folder / ROW
    content = {
        "images": results.keys,
        "skipped": list(plan.subject.examples.skipped),
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
