"""Each check of a row fires on its fault, and the rows of healthy networks pass them all."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import dag_jax
from dag_jax import Finding, Method, datasets, files, metrics, models, networks
from dag_jax.runs import attacks, audit, audit_checks, audit_scores, dataset, rundir, scores
from dag_jax.runs.attacks import Plan
from dag_jax.runs.audit_checks import Row
from dag_jax.runs.subject import subject_of
from experiments.common import console
from tests import toy_models

COUNT = 10  # images
PNG, GROWS = "saved PNGs score as the table says", "success grows with steps"
PERMUTED, STOPS = "permuted noise does worse", "no attack ends at a zero or non-finite gradient"
SLOPES = "gradients are the slopes of the scores"
pytestmark = pytest.mark.slow  # it attacks two models, again and again
WAVES, HUES = "waves", "hues"  # models that see by the one more than by the other


@pytest.fixture(scope="module")
def mesh():
    return console.open_mesh()


@pytest.fixture(scope="module")
def examples(cache):
    return datasets.load_examples("scenes", "voc07_test", cache_dir=cache, limit=COUNT)


@pytest.fixture(scope="module")
def make(mesh, examples):
    """Attack examples and keep their scores, as table1 does; return the row to audit."""

    def run(folder, model, max_steps, step_size, *, examples=examples, scored=True):
        method = Method(max_steps=max_steps, step_size=step_size, margin=1.0)
        plan = Plan(subject_of(model, examples), method)
        results = rundir.Results(folder, plan.manifest(), plan.subject.ids)
        attacks.attack_missing(plan, results, slots=2, mesh=mesh, label="attack")
        if scored:
            scores.keep(plan, results, mesh=mesh)
        return Row(plan, rundir.read(folder), mesh, 2)

    return run


@pytest.fixture(scope="module")
def healthy(make, tmp_path_factory):
    """A row whose attacks have converged, and that of another model, cut short."""
    folder = tmp_path_factory.mktemp("healthy")
    return {
        HUES: make(folder / HUES, toy_models.two_stage(), 30, 2.0),
        WAVES: make(folder / WAVES, toy_models.TwoStage(jnp.float32([2, 3])), 3, 1.0),
    }


def verdict(findings, check):
    """Return the finding of a check."""
    (finding,) = [finding for finding in findings if finding.check == check]
    return finding


def test_rows_of_healthy_models_pass_every_check(healthy):
    subject, rival = healthy.values()
    findings, ran = audit.of_row(subject, {WAVES: rival.run})
    assert ran and len(findings) == 15
    assert not [finding for finding in findings if finding.passed is not True]
    assert "3 of 3 images, such as scene_08_000000: scores of" in findings[0].detail


# The documentation audits a function, Table 1 the others.
def test_a_healthy_detector_passes_every_check_of_a_model(cache):
    network = networks.load("fr_zf_07", miniature=True)
    examples = datasets.load_examples("scenes", network.split, cache_dir=cache, limit=1)
    plan = Plan(subject_of(network, examples), Method())
    for _, image, targets, inputs in attacks.attack_inputs(plan):
        findings = dag_jax.audit(models.score_fn(network, *inputs), image, targets)
        assert all(finding.passed is True for finding in findings), findings


def flipped(image):
    """Return the image, whose gradient goes back with the wrong sign."""
    return 2 * lax.stop_gradient(image) - image


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Flipped(toy_models.TwoStage):
    """A detector whose gradient has the wrong sign."""

    def scores(self, image, handle):
        """Score boxes."""
        return super().scores(flipped(image), handle)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Detached(toy_models.TwoStage):
    """A detector whose gradient does not reach the image."""

    def scores(self, image, handle):
        """Score boxes."""
        return super().scores(lax.stop_gradient(image), handle)


def test_a_model_whose_gradient_is_masked(make, healthy, tmp_path):
    row = make(tmp_path / "run", Flipped(jnp.float32([2, 2])), 6, 2.0)
    checks = audit.checks_but(audit_checks.goes_on)
    findings, _ = audit.of_row(row, {WAVES: healthy[WAVES].run}, checks=checks)
    for check in (SLOPES, GROWS, PERMUTED, audit_scores.WHITE_BOX):
        assert verdict(findings, check).passed is False, check
    assert f"more harm by {WAVES}" in verdict(findings, audit_scores.WHITE_BOX).detail
    assert verdict(findings, PNG).passed is True


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Argmax(toy_models.OneStage):
    """A detector with a sigmoid head that is scored as a softmax head with a sure background."""

    classes = (*toy_models.OneStage.classes, "background")

    def scores(self, image, handle):
        """Return f32[N, 21], which no class wins."""
        logits = super().scores(image, handle)[..., 0]
        return jnp.concatenate([logits, jnp.full_like(logits[:, :1], 100.0)], axis=1)

    def detect(self, image):
        """Return `Detections`, as a sigmoid head has them."""
        return toy_models.OneStage(self.gains).detect(image)


def test_detections_that_stand_where_nothing_is_attacked(make, healthy, tmp_path):
    row = make(tmp_path / "run", Argmax(jnp.float32([2, 2])), 2, 2.0)
    assert {record["status"] for record in row.records} == {"NO_TARGETS"}
    assert audit_checks.stops(row).passed is True  # nothing else would say it
    (finding,) = audit_checks.stands(row)
    assert finding.passed is False and "right detections all the same" in finding.detail
    (right,) = audit_checks.stands(healthy[HUES])
    assert right.passed is True and right.detail == "1 of 10 images have no active target"


def test_a_model_whose_gradient_is_detached(make, examples, tmp_path):
    detached = Detached(jnp.float32([2, 2]))
    subject = make(tmp_path / "run", detached, 2, 2.0, examples=examples[:1], scored=False)
    finding = audit_checks.stops(subject)
    assert finding.passed is False and "ZERO_GRADIENT" in finding.detail
    assert audit_checks.grows(subject).passed is False
    assert verdict(audit_checks.model(subject), "gradients are finite and not zero").passed is False


def test_too_few_steps(healthy):
    stored, twice = audit_checks.goes_on(healthy[WAVES])
    assert stored.passed is True
    assert twice.passed is False and "raise --max_steps from 3" in twice.remedy
    assert f"images are unfinished after 3 steps; of {audit_checks.CONTINUED} that" in twice.detail


def remake(row, folder, changed, count=COUNT):
    """Make a row anew from its perturbations, changed; return it."""
    subject = dataclasses.replace(row.plan.subject, examples=row.examples[:count])
    plan = row.plan._replace(subject=subject)
    results = rundir.Results(folder, plan.manifest(), row.examples.ids[:count])
    for index, (key, example) in enumerate(zip(results.keys, row.examples, strict=False)):
        change = np.asarray(changed(row.run.perturbation(key)))
        results.add(index, example["image"], change, row.run.record(key), 0.0)
    scores.keep(plan, results, mesh=row.mesh)
    return row._replace(plan=plan, run=rundir.read(folder))


def test_permuted_perturbations_stored_for_the_attacks(healthy, tmp_path):
    changed = functools.partial(metrics.permute, jax.random.key(7))
    subject = remake(healthy[HUES], tmp_path / "run", changed)
    assert audit_scores.permuted(subject).passed is False
    stored, _ = audit_checks.goes_on(subject)
    assert stored.passed is False and "other perturbations" in stored.remedy
    assert all(finding.passed for finding in audit_scores.saved(subject))


def truncated(image, change):
    """Write pixels as a cast does that does not round."""
    return np.clip(image + change, 0, 255).astype(np.uint8)


def shift(row, folder):
    """Copy a run with a third of each change, and the perturbations and digests that say so."""
    shutil.copytree(row.run.folder, folder)
    for example in row.examples:
        key, image = example["image_id"], example["image"]
        path = folder / "perturbations" / f"{key}.safetensors"
        content, arrays = files.load(path)
        pixels = truncated(image, arrays["perturbation"] / 3)
        arrays["perturbation"] = pixels.astype(np.float32) - image
        files.write(folder / "images" / f"{key}.png", files.pack_image(pixels))
        files.write(path, files.pack(arrays, content | {"pixels_sha256": files.sha256(pixels)}))
    return row._replace(run=rundir.read(folder))


def test_a_writer_that_truncates(healthy, monkeypatch, tmp_path):
    subject = healthy[HUES]
    with monkeypatch.context() as patch:
        patch.setattr(rundir, "saved_pixels", truncated)
        made = remake(subject, tmp_path / "truncated", lambda change: change)
    finding = audit_scores.saved(made)[0]
    assert finding.passed is False and "truncated" in finding.remedy
    # The table is of these PNGs, so that its score is right: only the pixels tell.
    assert " 0.00% of their values" not in finding.detail and " 0 are predicted" in finding.detail


def test_pngs_that_the_table_is_not_of(healthy, tmp_path):
    subject, folder = healthy[HUES], tmp_path / "shifted"
    finding, _ = audit_scores.saved(shift(subject, folder))
    assert finding.passed is False and " 0.00% of their values" in finding.detail
    assert " 0 are predicted otherwise" not in finding.detail  # only the score tells
    (folder / "perturbations").rename(tmp_path / "other")
    shutil.copytree(subject.run.folder / "perturbations", folder / "perturbations")
    (finding,) = audit_scores.saved(subject._replace(run=rundir.read(folder)))
    assert finding.passed is False and "do not match their SHA-256" in finding.detail


def weak(change):
    """Return a perturbation that is rounded away: less than half a grey level everywhere."""
    return np.float32(0.49) * np.sign(change)


def test_rounding_that_undoes_an_attack(healthy, tmp_path):
    written, rounding = audit_scores.saved(remake(healthy[HUES], tmp_path / "run", weak))
    assert written.passed is True
    assert rounding.passed is False and "--rounded" in rounding.remedy
    assert "the score of 10 images goes from " in rounding.detail


def test_scores_of_too_few_images_are_not_compared(healthy, tmp_path):
    subject, rival = healthy.values()
    few = remake(subject, tmp_path / "run", weak, audit_checks.FEWEST - 1)
    rivals = {WAVES: rival.run}
    compared = audit_scores.white_box(few, rivals)
    for finding in (audit_scores.permuted(few), audit_scores.saved(few)[1], compared):
        assert finding.passed is None and finding.remedy == audit_checks.MORE_IMAGES, finding
    assert compared.detail.endswith("waves on: 9")


def test_folders_that_are_mixed_up(healthy):
    subject, rival = healthy.values()
    finding = audit_scores.white_box(subject._replace(run=rival.run), {HUES: subject.run})
    assert finding.passed is False and "mixed up" in finding.remedy
    assert audit_scores.white_box(subject, {}).passed is None


def test_a_table_keeps_its_audit(healthy, mesh, tmp_path):
    rows, checks = {}, (audit_checks.stops, audit_checks.grows)
    for name, row in healthy.items():
        shutil.copytree(row.run.folder, tmp_path / name)
        files.write_json(tmp_path / name / dataset.ROW, {"advr": 1.5})
        (rival,) = healthy.keys() - {name}
        rows[name] = audit.Audit(row.plan, checks, rivals=(rival,))
    of_table = functools.partial(audit.of_table, tmp_path, mesh=mesh, slots=4)
    alone_audit = {HUES: rows[HUES]._replace(rivals=())}
    alone = of_table(alone_audit)
    assert alone[HUES][-1].passed is None  # white-box against nobody
    path = tmp_path / HUES / "audit.json"
    content_before = path.read_bytes()
    assert of_table(alone_audit) == alone
    assert path.read_bytes() == content_before
    altered = json.loads(content_before.replace(b"0 of 10 images", b"what was kept"))
    files.write_json(path, {name: altered[name] for name in altered if name != "sha256"})
    # With another network in the table, only the comparison with it is new.
    (tmp_path / WAVES / "audit.json").write_text("damaged")
    both = of_table(rows)
    for findings in both.values():
        assert [finding.check for finding in findings] == [STOPS, GROWS, audit_scores.WHITE_BOX]
    assert [finding.passed for finding in both[HUES]] == [True] * 3
    assert both[WAVES][-1].passed is False  # cut short, it does less than the other
    assert both[HUES][0].detail == "what was kept" in path.read_text()
    content = json.loads((tmp_path / WAVES / "audit.json").read_text())
    assert set(content["rivals"]) == {HUES} and content["row"] == {"advr": 1.5}
    assert audit.stored_findings(tmp_path, list(rows)) == both
    # A network that is made anew: what was found of it, and of others beside it, is of the old one.
    files.write_json(tmp_path / WAVES / dataset.ROW, {"advr": 2})
    assert audit.stored_findings(tmp_path, list(rows)) == {HUES: both[HUES][:2]}
    assert of_table(rows) == both and "what was kept" in path.read_text()


def test_a_check_that_cannot_run_costs_no_table(healthy, tmp_path):
    subject = healthy[HUES]
    folder = tmp_path / "run"
    shutil.copytree(subject.run.folder, folder)
    shutil.rmtree(folder / "scores")
    done = [Finding(audit_scores.WHITE_BOX, None, "nothing", "add one")]
    broken = subject._replace(run=rundir.read(folder))
    checks = audit.checks_but(audit_checks.model, audit_checks.goes_on)
    findings, ran = audit.of_row(broken, {}, checks=checks)
    assert not ran
    wrong = {
        finding.check: finding.detail for finding in findings if finding.check.startswith("check ")
    }
    lacking = {"stands", "permuted", "saved"}
    assert set(wrong) == {f"check {name}" for name in lacking}
    assert all("no such file" in detail for detail in wrong.values())
    assert audit.of_row(broken, {}, then=done)[1]


def test_whatever_a_check_raises_costs_no_other(healthy):
    def fails(subject):
        return subject.run.manifest["nothing"]

    def interrupted(subject):
        raise KeyboardInterrupt

    subject = healthy[HUES]
    findings, ran = audit.of_row(subject, None, checks=(fails, audit_checks.stops))
    assert not ran and [finding.passed for finding in findings] == [None, True]
    assert findings[0].check == "check fails" and findings[0].detail == "KeyError: 'nothing'"
    with pytest.raises(KeyboardInterrupt):
        audit.of_row(subject, None, checks=(interrupted,))
