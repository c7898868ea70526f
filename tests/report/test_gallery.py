"""The gallery of the HTML report: its pictures are the run's, its filters show what they say."""

import numpy as np
import pytest
from PIL import Image

from dag_jax.report import gallery
from dag_jax.runs import rundir, scores
from tests.report.toy_run import ODD, SIDE, UNLABELLED, image_of, loaded


def test_clean_images_and_pngs_come_back_exactly(run):
    folder = run[0]
    for i, image in enumerate(sorted(loaded(folder, "toy", "index"))[1:]):
        with Image.open(folder / "report_files" / "clean" / image[2]) as clean:
            np.testing.assert_array_equal(np.asarray(clean), image_of(i + 1))
        with Image.open(folder / f"report_files/rows/toy/{image[1]}.webp") as saved:
            expected = rundir.read(folder / "toy").image(image[0])
            np.testing.assert_array_equal(np.asarray(saved), expected)


def test_a_clean_image_is_near_where_an_earlier_version_kept_less(run):
    perturbation = rundir.read(run[0] / "toy").perturbation("image_000")
    saved = rundir.saved_pixels(image_of(1), perturbation)
    taken = rundir._taken_back(saved, perturbation)
    inside = (saved > 0) & (saved < 255)
    difference = np.abs(taken.astype(int) - image_of(1))
    assert difference[inside].max() == 1 and difference.max() > 1


def test_predictions_are_what_the_model_said(run):
    folder = run[0]
    segmented = loaded(folder, "toy", 0)[0]
    assert segmented["before"]["classes"] == [[1, "100%"]]
    assert segmented["after"]["classes"] == [[2, "100%"]]
    with Image.open(folder / "report_files/rows/toy" / segmented["after"]["labels"]) as picture:
        assert set(picture.convert("RGB").get_flattened_data()) == {(0, 128, 0)}
    detected = loaded(folder, rundir.folder_name("my.module:load 100%"), 0)[0]
    assert detected["before"]["boxes"] == [[1, 2, 7, 8, 1, 0.9]]  # the other scores too little
    assert detected["after"]["classes"] == [[2, "1 ×"]]
    assert detected["png"]["boxes"] == [[1, 2, 7, 8, 2, 0.9], [1, 2, 9, 9, 1, 0.75]]
    for number, image in enumerate(loaded(folder, "toy", "index")):
        record = rundir.read(folder / "toy").record(image[0])
        assert image[-1] == record["active_png"]
        detail = loaded(folder, "toy", 0)[number]
        label, look = (2, "after") if record["fooled_png"] else (1, "before")
        assert detail["png"]["classes"] == [[label, "100%"]]
        kept = None if image[0] == UNLABELLED else detail[look]["labels"]
        assert detail["png"].get("labels") == kept


@pytest.mark.parametrize("most", [3, 300, 70000])
def test_labels_come_back(most):
    labels = np.random.default_rng(0).integers(0, min(most, 2**16), (9, 5)).astype(np.int32)
    np.testing.assert_array_equal(scores.unpack_labels(scores.pack_labels(labels)), labels)


def test_a_change_is_shown_signed():
    change = np.float32([[[-2, 0, 2]]])
    np.testing.assert_array_equal(gallery.signed(change, 2.0), [[[0, 128, 255]]])
    np.testing.assert_array_equal(gallery.signed(0 * change, 0.0), [[[128, 128, 128]]])


def names(page):
    return page.locator(".tile .name").all_text_contents()


@pytest.mark.slow
def test_filters_sorting_and_pages_show_what_they_say(opened, run):
    records = {record["key"]: record for record in rundir.read(run[0] / "toy").records}
    left = [records[name]["active_counts"][-1] for name in names(opened)]
    assert len(left) == 60 and left == sorted(left, reverse=True)  # worst first
    opened.click("#next")
    assert len(names(opened)) == 5 and opened.inner_text("#page") == "page 2 of 2"
    for bit, title in enumerate(
        ("fooled as float", "fooled as PNG", "unfinished", "no targets", "failed")
    ):
        expected = {key for key in records if gallery.outcome(records[key]) >> bit & 1}
        opened.click(f"#filters >> text={title} ({len(expected)})")
        assert set(names(opened)) == expected
        assert all(title in tile for tile in opened.locator(".tile").all_inner_texts())
    opened.click("text=all (65)")
    for order, key in (("largest", "largest_change"), ("steps", "num_steps")):
        opened.select_option("#sort", order)
        numbers = sorted((record[key] for record in records.values()), reverse=True)[:60]
        assert [records[name][key] for name in names(opened)] == numbers
    opened.select_option("#sort", "visible")
    attacked = [records[name]["perceptibility"] for name in names(opened)[:52]]
    assert attacked == sorted(attacked)
    untouched = {records[name]["status"] for name in names(opened)[52:]}
    assert untouched == {"NO_TARGETS"}  # there is nothing to see in these
    opened.fill("#name", "c?#%&<IMG")
    assert names(opened) == [ODD]
    assert opened.locator(".tile img").evaluate("image => image.decode().then(() => 1)") == 1


@pytest.mark.slow
def test_the_viewer_works_by_keyboard(opened):
    opened.locator(".tile").first.focus()
    opened.keyboard.press("Enter")
    # What it shows is read when it opens.
    opened.wait_for_function(
        "document.getElementById('viewer-title').innerText.endsWith('(1 of 65)')"
    )
    opened.keyboard.press("ArrowRight")
    opened.wait_for_function("document.getElementById('viewer-title').innerText.includes('(2 of')")
    opened.keyboard.press("b")
    assert not opened.locator("#adversarial").is_visible()
    opened.keyboard.press("b")
    assert opened.locator("#adversarial").is_visible()
    assert UNLABELLED in opened.inner_text("#viewer-title")
    assert opened.locator("#viewer img").count() == 5
    assert opened.locator("#viewer img:not([alt]), #viewer img[alt='']").count() == 0
    assert opened.locator("#classes tr").all_inner_texts() == [
        "class\tclean\tattacked\tPNG",
        "cat\t100%\t< 1%\t100%",
        "<b>dog</b>\t< 1%\t100%\t< 1%",
    ]
    assert "40 targets active" in opened.inner_text("#after")
    assert "3 targets active. No picture" in opened.inner_text("#png")
    opened.locator("#slider").focus()
    opened.keyboard.press("End")
    assert opened.evaluate("document.getElementById('compare').style.cssText").endswith(": 0%;")
    opened.keyboard.press("Escape")
    assert not opened.locator("#viewer-title").is_visible()
    opened.locator(".tile").first.press("Enter")
    opened.wait_for_function("document.getElementById('viewer-title').innerText.includes('(1 of')")
    assert "3 targets active" in opened.inner_text("#png")
    assert opened.locator("#viewer img").count() == 6


@pytest.mark.slow
def test_the_other_row_has_its_own_images_and_boxes(opened):
    opened.select_option("#row", "1")
    opened.wait_for_selector("#row-1")
    opened.locator(".tile").first.click()
    opened.wait_for_selector("#before rect:not(.rim)", state="attached")
    assert opened.locator("#before rect:not(.rim)").count() == 1
    assert opened.locator("#before title").text_content() == "cat 0.9"
    assert opened.locator("#after text").text_content() == "<b>dog</b>"
    opened.wait_for_selector("#png text >> nth=1", state="attached")
    floors = opened.locator("#png text").evaluate_all("all => all.map(e => e.y.baseVal[0].value)")
    assert floors[1] - floors[0] >= (SIDE + 2) / 20  # names stand apart, by their height


@pytest.mark.slow
def test_a_failure_opens_its_image(opened, run):
    failed = opened.locator("#row-0 button[data-key]").all_inner_texts()
    records = rundir.read(run[0] / "toy").records
    assert failed == [record["key"] for record in records if record["status"] == "ZERO_GRADIENT"]
    opened.fill("#name", "nowhere")
    opened.locator("#row-0 button[data-key]").last.click()
    opened.wait_for_function(
        f"document.getElementById('viewer-title').innerText.startsWith('{failed[-1]} (')"
    )
