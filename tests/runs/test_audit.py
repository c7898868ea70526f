"""Each check of a row fires on its fault, and the rows of healthy networks pass them all."""

import collections
import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest
from jax import lax

import dag_jax
from dag_jax import Finding, files, metrics, networks
from dag_jax.networks.faster_rcnn import FasterRCNN
from dag_jax.runs import attacks, audit, audit_checks, evaluation, rundir, scores
from dag_jax.runs.audit_checks import Subject
from experiments.common import console

SETTINGS = {"seed": 0, "step_size": 0.5, "rounded": False}
COUNT = 10  # images
PNG, GROWS = "saved PNGs score as the table says", "success grows with steps"
PERMUTED, STOPS = "permuted noise does worse", "no attack ends at a zero or non-finite gradient"
Attack = collections.namedtuple("Attack", "image perturbation")
SLOPES = "gradients are the slopes of the scores"


@pytest.fixture(scope="module")
def mesh():
    return console.open_mesh()


@pytest.fixture(scope="module")
def load():
    return functools.cache(functools.partial(networks.load, miniature=True))


@pytest.fixture(scope="module")
def examples(cache, load):
    return evaluation.load_examples(
        "scenes", ["voc07_test"], cache_dir=cache, limit=COUNT, network=load("fr_zf_07")
    )


def keep(network, examples, results, mesh):
    options = {"seed": 0, "rounded": False, "all_of_them": True}
    scores.keep(network, examples, results, mesh=mesh, **options)


@pytest.fixture(scope="module")
def make(mesh, examples):
    """Attack examples and keep their scores, as table1 does; return the audit's subject."""

    def run(folder, network, max_steps, *, examples=examples, scored=True):
        manifest = {"network": network.name, "max_steps": max_steps, "margin": 3.0}
        keys = [example["image_id"] for example in examples]
        results = rundir.Results(folder, manifest | {"settings": SETTINGS}, keys)
        options = {"max_steps": max_steps, "margin": 3.0, "step_size": 0.5}
        attacks.attack_all(
            network,
            examples,
            results,
            seed=0,
            slots=4,
            mesh=mesh,
            label="attack",
            rounded=False,
            **options,
        )
        if scored:
            keep(network, examples, results, mesh)
        return Subject(network, examples, rundir.read(folder), mesh, 4)

    return run


@pytest.fixture(scope="module")
def healthy(make, load, tmp_path_factory):
    """A row whose attacks have converged, and that of another network, cut short."""
    folder, steps = tmp_path_factory.mktemp("healthy"), {"fr_zf_07": 150, "fr_zf_0712": 6}
    return {name: make(folder / name, load(name), count) for name, count in steps.items()}


def verdict(findings, check):
    """Return the finding of a check."""
    (found,) = [one for one in findings if one.check == check]
    return found


pytestmark = pytest.mark.slow  # it compiles whole networks


def test_rows_of_healthy_networks_pass_every_check(healthy):
    subject, rival = healthy.values()
    found, ran = audit.of_row(subject, {"FR-ZF-0712": rival.run})
    assert ran and len(found) == 14
    assert not [one for one in found if one.passed is not True]
    assert "3 of 3 images, such as scene_08_000000: scores of" in found[0].said


@pytest.mark.parametrize("name", networks.NAMES)
def test_healthy_networks_pass_every_check_of_a_model(cache, load, name):
    network = load(name)
    split = "voc07_test" if network.detects else "seg11valid"
    some = evaluation.load_examples("scenes", [split], cache_dir=cache, limit=1, network=network)
    for _, image, targets, inputs in attacks.attack_inputs(network, some, 0):
        found = dag_jax.audit(networks.score_fn(network, *inputs), image, targets)
        assert all(one.passed is True for one in found), found


def test_probabilities_of_a_network_for_its_logits(cache, load):
    network = load("fcn_alex")
    (example,) = evaluation.load_examples(
        "scenes", ["seg11valid"], cache_dir=cache, limit=1, network=network
    )
    ((_, image, targets, _),) = attacks.attack_inputs(network, [example], 0)
    squashed = lambda image: jax.nn.softmax(networks.score_fn(network)(image))  # noqa: E731
    found = dag_jax.audit(squashed, image, targets)
    assert verdict(found, "scores are logits").passed is False


def flipped(image):
    """Return the image, whose gradient goes back with the wrong sign."""
    return 2 * lax.stop_gradient(image) - image


class Flipped(FasterRCNN):
    """A detector whose gradient has the wrong sign."""

    def score(self, image, boxes, extent=None):
        """Score boxes."""
        return super().score(flipped(image), boxes, extent)


class Detached(FasterRCNN):
    """A detector whose gradient does not reach the image."""

    def score(self, image, boxes, extent=None):
        """Score boxes."""
        return super().score(lax.stop_gradient(image), boxes, extent)


def planted(network, kind):
    """Return a network whose module is of another class with the same attributes."""
    module = network.module
    names = [field.name for field in dataclasses.fields(module) if field.init]
    attributes = {name: getattr(module, name) for name in names if name not in ("parent", "name")}
    return dataclasses.replace(network, module=kind(**attributes))


def test_a_network_whose_gradient_is_masked(make, load, healthy, tmp_path):
    subject = make(tmp_path / "run", planted(load("fr_zf_07"), Flipped), 6)
    checks = audit.checks_but(audit_checks.goes_on)
    found, _ = audit.of_row(subject, {"FR-ZF-0712": healthy["fr_zf_0712"].run}, checks=checks)
    for check in (SLOPES, GROWS, PERMUTED, audit_checks.WHITE_BOX):
        assert verdict(found, check).passed is False, check
    assert "more harm by FR-ZF-0712" in verdict(found, audit_checks.WHITE_BOX).said
    assert verdict(found, PNG).passed is True


def test_a_network_whose_gradient_is_detached(make, load, examples, tmp_path):
    network, some = planted(load("fr_zf_07"), Detached), {"examples": examples[:1]}
    subject = make(tmp_path / "run", network, 2, scored=False, **some)
    found = audit_checks.stops(subject)
    assert found.passed is False and "ZERO_GRADIENT" in found.said
    assert audit_checks.grows(subject).passed is False
    assert verdict(audit_checks.model(subject), "gradients are finite and not zero").passed is False


def test_too_few_steps(healthy):
    stored, twice = audit_checks.goes_on(healthy["fr_zf_0712"])
    assert stored.passed is True
    assert twice.passed is False and "raise --max_steps from 6" in twice.remedy
    assert f"images are unfinished after 6 steps; of {audit_checks.CONTINUED} that" in twice.said


def remake(subject, folder, changed, count=COUNT):
    """Make a row anew from its perturbations, changed; return the subject."""
    run, own = subject.run, {"format", "units", "shard_size", "keys"}  # which Results adds itself
    manifest = {name: value for name, value in run.manifest.items() if name not in own}
    results = rundir.Results(folder, manifest, run.keys[:count])
    for index, example in enumerate(subject.examples[:count]):
        change = np.asarray(changed(run.perturbation(run.keys[index])))
        results.add(index, Attack(example["image"], change), run.records[index], 0.0)
    keep(subject.network, subject.examples[:count], results, subject.mesh)
    return subject._replace(examples=subject.examples[:count], run=rundir.read(folder))


def test_permuted_perturbations_stored_for_the_attacks(healthy, tmp_path):
    changed = functools.partial(metrics.permute, jax.random.key(7))
    subject = remake(healthy["fr_zf_07"], tmp_path / "run", changed)
    assert audit_checks.permuted(subject).passed is False
    stored, _ = audit_checks.goes_on(subject)
    assert stored.passed is False and "other perturbations" in stored.remedy
    assert all(one.passed for one in audit_checks.saved(subject))


def truncated(image, change):
    """Write pixels as a cast does that does not round."""
    return np.clip(image + change, 0, 255).astype(np.uint8)


def shift(subject, folder):
    """Copy a run with truncated PNGs, and the perturbations and digests that say the same."""
    shutil.copytree(subject.run.folder, folder)
    images = {example["image_id"]: example["image"] for example in subject.examples}
    for path in sorted((folder / "perturbations").iterdir()):
        said, arrays = files.load(files.open_folder(path))
        for key in said:
            pixels = truncated(images[key], arrays[key])
            arrays[key] = pixels.astype(np.float32) - images[key]
            files.write(folder / "images" / f"{key}.png", files.pack_image(pixels))
            said[key]["pixels_sha256"] = files.sha256(pixels)
        files.write(path, files.pack(arrays, said))
    return subject._replace(run=rundir.read(folder))


def test_a_writer_that_truncates(healthy, monkeypatch, tmp_path):
    subject = healthy["fr_zf_07"]
    with monkeypatch.context() as patch:
        patch.setattr(rundir, "saved_pixels", truncated)
        made = remake(subject, tmp_path / "truncated", lambda change: change)
    found = audit_checks.saved(made)[0]
    assert found.passed is False and "truncated" in found.remedy
    # The table is of these PNGs, so that its score is right: only the pixels tell.
    assert " 0.00% of their values" not in found.said and " 0 are predicted" in found.said


def test_pngs_that_the_table_is_not_of(healthy, tmp_path):
    subject, folder = healthy["fr_zf_07"], tmp_path / "shifted"
    found, _ = audit_checks.saved(shift(subject, folder))
    assert found.passed is False and " 0.00% of their values" in found.said
    assert " 0 are predicted otherwise" not in found.said  # only the score tells
    (folder / "perturbations").rename(tmp_path / "other")
    shutil.copytree(subject.run.folder / "perturbations", folder / "perturbations")
    (found,) = audit_checks.saved(subject._replace(run=rundir.read(folder)))
    assert found.passed is False and "do not match their SHA-256" in found.said


def weak(change):
    """Return a perturbation that is rounded away: less than half a grey level everywhere."""
    return np.float32(0.49) * np.sign(change)


def test_rounding_that_undoes_an_attack(healthy, tmp_path):
    written, found = audit_checks.saved(remake(healthy["fr_zf_07"], tmp_path / "run", weak))
    assert written.passed is True
    assert found.passed is False and "--rounded" in found.remedy
    assert "the score of 10 images goes from " in found.said


def test_scores_of_too_few_images_are_not_compared(healthy, tmp_path):
    subject, rival = healthy.values()
    few = remake(subject, tmp_path / "run", weak, audit_checks.FEWEST - 1)
    rivals = {"FR-ZF-0712": rival.run}
    compared = audit_checks.white_box(few, rivals)
    for found in (audit_checks.permuted(few), audit_checks.saved(few)[1], compared):
        assert found.passed is None and found.remedy == audit_checks.MORE_IMAGES, found
    assert compared.said.endswith("FR-ZF-0712 on: 9")


def test_folders_that_are_mixed_up(healthy):
    subject, rival = healthy.values()
    found = audit_checks.white_box(subject._replace(run=rival.run), {"FR-ZF-07": subject.run})
    assert found.passed is False and "mixed up" in found.remedy
    assert audit_checks.white_box(subject, {}).passed is None


def test_a_table_keeps_its_audit(healthy, load, examples, mesh, tmp_path):
    rows, checks = {}, (audit_checks.stops, audit_checks.grows)
    for name, subject in healthy.items():
        shutil.copytree(subject.run.folder, tmp_path / name)
        (tmp_path / name / "row.json").write_text('{"advr": 1.5}')
        (other,) = healthy.keys() - {name}
        title = evaluation.TITLES[name]
        rows[name] = audit.Row(title, load(name), examples, checks, rivals=(other,))
    of_table = functools.partial(audit.of_table, tmp_path, mesh=mesh, slots=4)
    one = {"fr_zf_07": rows["fr_zf_07"]._replace(rivals=())}
    alone = of_table(one)
    assert alone["fr_zf_07"][-1].passed is None  # white-box against nobody
    path = tmp_path / "fr_zf_07" / "audit.json"
    kept = path.read_bytes()
    assert of_table(one) == alone
    assert path.read_bytes() == kept
    path.write_bytes(kept.replace(b"0 of 10 images", b"what was kept"))
    # With another network in the table, only the comparison with it is new.
    (tmp_path / "fr_zf_0712" / "audit.json").write_text("damaged")
    both = of_table(rows)
    for found in both.values():
        assert [one.check for one in found] == [STOPS, GROWS, audit_checks.WHITE_BOX]
    assert [one.passed for one in both["fr_zf_07"]] == [True] * 3
    assert both["fr_zf_0712"][-1].passed is False  # cut short, it does less than the other
    assert both["fr_zf_07"][0].said == "what was kept" in path.read_text()
    content = json.loads((tmp_path / "fr_zf_0712" / "audit.json").read_text())
    assert set(content["rivals"]) == {"fr_zf_07"} and content["row"] == {"advr": 1.5}
    assert audit.kept(tmp_path, list(rows)) == both
    # A network that is made anew: what was found of it, and of others beside it, is of the old one.
    (tmp_path / "fr_zf_0712" / "row.json").write_text('{"advr": 2}')
    assert audit.kept(tmp_path, list(rows)) == {"fr_zf_07": both["fr_zf_07"][:2]}
    assert of_table(rows) == both and "what was kept" in path.read_text()


def test_a_check_that_cannot_run_costs_no_table(healthy, tmp_path):
    subject = healthy["fr_zf_07"]
    folder = tmp_path / "run"
    shutil.copytree(subject.run.folder, folder)
    for path in (folder / "scores").iterdir():
        path.unlink()
    done = [Finding(audit_checks.WHITE_BOX, None, "nothing", "add one")]
    broken = subject._replace(run=rundir.read(folder))
    checks = audit.checks_but(audit_checks.model, audit_checks.goes_on)
    found, ran = audit.of_row(broken, {}, checks=checks)
    assert not ran
    wrong = {one.check: one.said for one in found if one.check.startswith("audit_checks.")}
    assert set(wrong) == {"audit_checks.permuted", "audit_checks.saved"}
    assert all("no such file" in said for said in wrong.values())
    assert audit.of_row(broken, {}, then=done)[1]


def test_whatever_a_check_raises_costs_no_other(healthy):
    def fails(subject):
        return subject.run.manifest["nothing"]

    def interrupted(subject):
        raise KeyboardInterrupt

    subject = healthy["fr_zf_07"]
    found, ran = audit.of_row(subject, None, checks=(fails, audit_checks.stops))
    assert not ran and [one.passed for one in found] == [None, True]
    assert found[0].check == "audit_checks.fails" and found[0].said == "KeyError: 'nothing'"
    with pytest.raises(KeyboardInterrupt):
        audit.of_row(subject, None, checks=(interrupted,))
