"""The launch on a rendered scene saved as a photograph, and what it refuses.

Most of it on models of nobody's framework, which need no training and compile fast.
"""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from dag_jax import datasets, metrics
from dag_jax.runs import evaluation, unlabelled
from dag_jax.runs.subject import weights_digest
from tests import toy_models

SEGMENTER, DETECTOR = "tests.toy_models:segmenter", "tests.toy_models:two_stage"
SIGMOID = "tests.toy_models:sigmoid"
STEPS = 6


@pytest.fixture(scope="module")
def photograph(cache, tmp_path_factory):
    """A scene as a camera held sideways saves it: turned to the left, and EXIF says so."""
    scene = datasets.open_dataset("scenes", "seg11valid[:2]", cache_dir=cache)[1]
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = Image.fromarray(scene["image"][:, :96])
    path = tmp_path_factory.mktemp("camera") / "DSC 1.png"
    upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    return path


@pytest.fixture(scope="module")
def run(launch, photograph, tmp_path_factory):
    """One perturbation for a segmenter and a detector."""
    workdir = tmp_path_factory.mktemp("attack_image") / "run"
    flags = (
        *(f"--image={photograph}", f"--models={SEGMENTER},{DETECTOR}", f"--max_steps={STEPS}"),
        *("--step_size=2", f"--workdir={workdir}"),
    )
    return workdir, flags, launch("attack_image", *flags)


def pixels_of(path):
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def result_of(workdir):
    record = json.loads((workdir / "attack_image.json").read_text())
    return record, *(pixels_of(workdir / f"{name}.png") for name in ("clean", "adversarial"))


def test_the_folder_holds_what_the_record_names(run):
    workdir, _, process = run
    record, clean, _ = result_of(workdir)
    assert {path.name for path in workdir.iterdir()} == {"manifest.json", *record["files"].values()}
    assert (workdir / "attack_image.png").stat().st_size > 10_000
    assert f"results: {workdir}" in process.stdout and record["status"] in process.stdout
    assert record["exif_orientation"] == 6 and clean.shape == (128, 96, 3)
    assert record["photograph_size"] == record["size"] == [96, 128]


def test_the_settings_say_what_was_attacked(run, photograph):
    settings = result_of(run[0])[0]["settings"]
    assert settings["image"] == "DSC 1.png" and settings["max_steps"] == STEPS
    assert settings["image_sha256"] == hashlib.sha256(photograph.read_bytes()).hexdigest()
    assert settings["margin"] == {SEGMENTER: 0.0, DETECTOR: 3.0}
    assert settings["weights_sha256"][SEGMENTER] == weights_digest(toy_models.segmenter())


def test_the_record_is_true_of_the_saved_image(run):
    record, clean, saved = result_of(run[0])
    change = saved.astype(np.float32) - clean
    assert record["largest_change"] == np.abs(change).max() > 0
    assert record["perceptibility"] == pytest.approx(float(metrics.perceptibility(change)))
    parts = record["models"]
    assert record["active_png"] == sum(part["active_png"] for part in parts.values())
    assert record["active_png"] == pytest.approx(record["active_counts"][-1], abs=3)
    assert record["fooled_png"] == (record["active_png"] == 0)
    assert record["num_steps"] == len(record["active_counts"]) - 1 == STEPS
    before, after = evaluation.predict(toy_models.segmenter(), [clean, saved])
    part = parts[SEGMENTER]
    assert part["targets"] == before.size
    assert part["active_png"] == pytest.approx((before == after).sum(), abs=3)
    assert 0 < part["pixels_changed"] == pytest.approx((before != after).mean(), abs=1e-3)


def test_a_detector_is_attacked_on_what_it_finds(run):
    record, clean, saved = result_of(run[0])
    part, model = record["models"][DETECTOR], toy_models.two_stage()
    pair = evaluation.predict(model, [clean, saved])
    for name, detections in zip(("before", "after"), pair, strict=True):
        listed = part[f"detections_{name}"]
        assert [box["class"] for box in listed] == [
            model.classes[index] for index in detections.classes
        ]
        np.testing.assert_allclose([box["score"] for box in listed], detections.scores, atol=2e-3)
    assert part["objects_before"] == len(unlabelled.objects_in(pair[0]).scores) > 0
    assert part["objects_kept"] <= part["objects_before"] and part["targets"] > 0


def test_the_folder_belongs_to_this_attack(run, call, refuse, capsys):
    workdir, flags, _ = run
    before = {path: path.read_bytes() for path in workdir.iterdir()}
    assert "other settings (seed: now 1, there 0)" in refuse("attack_image", *flags, "--seed=1")
    call("attack_image", *flags)
    assert "this attack is done" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in workdir.iterdir()} == before


@pytest.mark.slow
def test_a_drawing_is_what_is_to_be_seen_and_its_void_is_left_alone(call, photograph, tmp_path):
    drawing = np.full((128, 96), datasets.VOID, np.uint8)
    drawing[:, :48] = 4
    Image.fromarray(drawing).save(tmp_path / "drawing.png")
    workdir = tmp_path / "run"
    flags = (f"--models={SEGMENTER}", "--max_steps=2", f"--target={tmp_path / 'drawing.png'}")
    call("attack_image", f"--image={photograph}", *flags, f"--workdir={workdir}")
    record, clean, _ = result_of(workdir)
    (labels,) = evaluation.predict(toy_models.segmenter(), [clean])
    assert record["settings"]["target"] == "drawing.png"
    targets = record["models"][SEGMENTER]["targets"]
    assert targets == pytest.approx((labels[:, :48] != 4).sum(), abs=3)


def test_a_photograph_and_its_drawing_are_scaled_alike(load_launch):
    drawing = np.repeat(np.int32([[0, 5], [12, 255]]), 50, axis=0).repeat(60, axis=1)
    image = np.uint8(drawing)[:, :, None].repeat(3, axis=2)
    with load_launch("attack_image") as module:
        same, nothing = module.scaled(image, 0)
        assert same is image and not nothing.any()
        scaled, mask = module.scaled(image, 64, drawing)
    assert mask.shape == (64, 64) and set(mask.ravel()) == {0, 5, 12, 255}
    np.testing.assert_array_equal(scaled[16::32, 16::32, 0], [[0, 5], [12, 255]])
    np.testing.assert_array_equal(mask[16::32, 16::32], [[0, 5], [12, 255]])


def test_nothing_found_is_nothing_to_attack(refuse, tmp_path):
    Image.new("L", (128, 128), 128).save(tmp_path / "grey.png")
    flags = (f"--image={tmp_path / 'grey.png'}", f"--workdir={tmp_path / 'run'}")
    text = refuse("attack_image", *flags, f"--models={DETECTOR}")
    assert "TwoStage finds no object in grey.png that scores 0.5" in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--image={tmp}/cut.png",), "cut.png (700 bytes) is"),
        (("--target=unicorn",), "is no rule (permute, absent), no class of Streets (Person, sky"),
        (("--target={tmp}/cut.png",), "cut.png (700 bytes) is"),
        (("--target={tmp}/map.png",), "map.png has 40 x 50 pixels, the upright photograph has 96"),
        (("--target={tmp}/wide.png",), "of no class, the first 7 at"),
        ((f"--models={DETECTOR}", "--target={tmp}/map.png"), "a segmentation, TwoStage detects"),
        ((f"--models={SIGMOID}", "--target=tv"), "made to lose an object, not to see it as anoth"),
        (("--models=fcn_alex", "--nominiature"), "at full size needs --weights_dir"),
        (("--canvas=47",), "--canvas=47: must be 0, or 48 to 16384 pixels"),
        (("--min_score=1",), "--min_score=1.0: must be 0 or more, and below 1"),
    ],
)
def test_bad_input_is_named_before_anything_is_written(
    refuse, photograph, tmp_path, flags, message
):
    (tmp_path / "cut.png").write_bytes(photograph.read_bytes()[:700])
    Image.new("L", (40, 50)).save(tmp_path / "map.png")
    Image.new("L", (96, 128), 7).save(tmp_path / "wide.png")  # it has classes 0 to 6
    flags = [flag.format(tmp=tmp_path) for flag in flags]
    workdir = tmp_path / "run"
    flags = (f"--image={photograph}", f"--models={SEGMENTER}", *flags, f"--workdir={workdir}")
    assert message in refuse("attack_image", *flags)
    assert not workdir.exists()
