"""The HTML report: what it says is what the run says, it needs no network, and it works."""

import collections
import json
import re
import shutil
import urllib.parse

import numpy as np
import pytest
from PIL import Image

import dag_jax.report
from dag_jax import files
from dag_jax.engine.audit import Finding
from dag_jax.errors import UserError
from dag_jax.report import audit as audit_report
from dag_jax.report import charts, gallery
from dag_jax.report.html import _script_json
from dag_jax.runs import findings, rundir, scores

CLASSES = ["background", "cat", "<b>dog</b>"]
ODD = "a/b c?#%&<img src=x onerror=alert(1)>'\"</script>\u2028é"
METHOD = {"rounded": False, "margin": 0.0}
SIDE = 12


def record(i, status, *, png=False, left=0):
    counts = [100, 60 - i, left]
    return {
        "status": status,
        "num_steps": 2 + 7 * i % 5,
        "active_counts": counts,
        "perceptibility": 0.001 * (1 + 5 * i % 7),
        "largest_change": 1.0 + 3 * i % 11,
        "fooled": status == "FOOLED",
        "fooled_png": png,
        "active_png": 0 if png else 3,
    }


STATES = (
    *(("FOOLED", True, 0), ("FOOLED", False, 0), ("MAX_STEPS", False, 7)),
    *(("NO_TARGETS", True, 0), ("ZERO_GRADIENT", False, 40)),
)


def image_of(i):
    image = np.random.default_rng(i).integers(0, 256, (SIDE, SIDE + 2, 3), dtype=np.uint8)
    image[:2], image[2:4] = 0, 255  # where the sum is clipped
    return image


def make_row(folder, keys, *, detects=False):
    """Write a finished row of images that are random, and return it."""
    manifest = {"title": "Toy & <co>", "classes": CLASSES, "method": METHOD}
    manifest |= {"task": "detection" if detects else "segmentation"}
    results = rundir.Results(folder, manifest, keys)
    for i in range(len(keys)):
        status, png, left = STATES[i % len(STATES)]
        change = np.random.default_rng(99 + i).normal(0, 4, (SIDE, SIDE + 2, 3))
        change = np.float32(np.rint(2 * change) / 2)  # halves: where rounding loses most
        image = image_of(i)
        about = record(i, status, png=png, left=left) | {"image_sha256": files.sha256(image)}
        results.add(i, image, change, about, 0.0)
        for column, label in (("orig", 1), ("advr", 2)):
            if detects:
                boxes = np.float32([[1, 2, 7, 8], [0, 0, 3, 3]])
                values = {"scores": np.float32([0.9, 0.2]), "classes": np.int32([label, 1])}
                results.put(column, i, {"boxes": boxes, **values})
            else:
                labels = np.full((SIDE, SIDE + 2), label)
                confusion = np.zeros((3, 3), int)
                confusion[1, label] = labels.size
                packed = scores.pack_labels(labels)
                results.put(column, i, {"confusion": confusion, scores.LABELS: packed})
    intervals = {name: [70.0 - i, 60.0, 80.0] for i, name in enumerate(("orig", "advr", "perm"))}
    row = {
        **{"row": "toy", "network": "toy", "title": manifest["title"], "task": manifest["task"]},
        **{"classes": CLASSES, "intervals": intervals},
        **{name: values[0] for name, values in intervals.items()},
        "class_scores": {"orig": [90.0, 50.0, None], "advr": [1.5, 0.0, None]},
        **scores.summary_of(results.records()),
    }
    files.write_json(results.folder / "row.json", row)
    return row


def make_table(folder, keys, names=("toy",)):
    """Write the folder of a launch, with a failing check, and return its rows."""
    rundir.claim(folder, {"launch": "table1", "settings": {"limit": "<&>"}})
    rows = []
    for i, name in enumerate(names):
        some = keys[:5] if i else keys
        row = make_row(folder / rundir.folder_name(name), some, detects=bool(i)) | {"row": name}
        rows.append(row)
    found = [Finding("it <i>grows</i>", False, "it does not", "raise --max_steps")]
    audit_report.write(
        folder,
        "table1",
        "# Table",
        {"rows": rows},
        findings={names[0]: [*found, Finding("it repeats", True, "it does", "")]},
        titles={name: name for name in names},
    )
    return rows


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A table of a segmenter and a detector with odd names, and its page."""
    folder = tmp_path_factory.mktemp("report") / "odd & <name>"
    keys = [ODD, *(f"image_{i:03d}" for i in range(64))]
    rows = make_table(folder, keys, ("toy", "my.module:load 100%"))
    return folder, rows, dag_jax.report.write(folder)


def loaded(folder, place, part):
    """Return what a script of the page would be given."""
    text = (folder / "report_files" / "rows" / place / f"{part}.js").read_text()
    name, content = json.loads(f"[{text[len('dagReport.take(') : -len(');') - 1]}]")
    assert name == [place, part]
    return content


def test_the_page_names_no_address_and_every_file_that_it_names_is_there(run):
    folder, _, page = run
    text = page.read_text()
    addresses = set(re.findall(r"https?://[^\s\"'<>)]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of SVG, which nothing loads
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", text)
    for row in json.loads(re.search(r'id="data">(.*?)</script>', text)[1])["rows"]:
        place = urllib.parse.unquote(row["url"]).rpartition("/")[2]
        for image in loaded(folder, place, "index"):
            for name in (f"{image[1]}.webp", f"{image[1]}_change.webp"):
                assert (folder / urllib.parse.unquote(row["url"]) / name).is_file()
            assert (folder / "report_files" / "clean" / image[2]).is_file()


def test_names_are_text_wherever_they_stand(run):
    folder, _, page = run
    text = page.read_text()
    assert "<b>dog</b>" not in text and "<co>" not in text and "<i>grows" not in text
    assert "Toy &amp; &lt;co&gt;" in text
    index = (folder / "report_files/rows/toy/index.js").read_bytes()
    assert index.isascii() and not set(b"<>&") & set(index)
    assert ODD in [image[0] for image in loaded(folder, "toy", "index")]
    assert json.loads(_script_json(ODD)) == ODD


def test_the_numbers_are_those_of_the_table(run):
    folder, rows, page = run
    text = page.read_text()
    images = loaded(folder, "toy", "index")
    assert len(images) == rows[0]["images"] == 65
    bits = collections.Counter(
        bit for image in images for bit in (1, 2, 4, 8, 16) if image[4] & bit
    )
    targets = 65 - bits[gallery.NO_TARGETS]
    assert bits[gallery.NO_TARGETS] == rows[0]["no_targets"]
    assert bits[gallery.UNFINISHED] == rows[0]["unfinished"]
    assert bits[gallery.FLOAT] / targets == rows[0]["fooled_float"]
    assert bits[gallery.PNG] / targets == rows[0]["fooled"]
    assert bits[gallery.FAILED] == 13
    cards = re.findall(r"<dt>(.*?)</dt>\s*<dd><span class=\"value\">(.*?)</span>", text)
    assert ("clean", "70.00") in cards and ("attacked", "69.00") in cards
    assert ("steps, median", f"{rows[0]['steps_median']:g}") in cards
    assert f"{findings.LEVEL:.0%} interval 60.00 to 80.00" in text
    assert "raise --max_steps" in text and "1 of 2 hold" in text


def test_histograms_hold_every_image_with_targets(run):
    records = rundir.read(run[0] / "toy").records
    some = [one for one in records if one["status"] != "NO_TARGETS"]
    for chart in charts.histograms(some):
        counts = [int(re.search(r": (\d+) image", bar["text"])[1]) for bar in chart["bars"]]
        assert sum(counts) == len(some)
    assert charts.histograms([]) == []


def test_clean_images_and_pngs_come_back_exactly(run):
    folder = run[0]
    for i, image in enumerate(
        sorted(loaded(folder, "toy", "index"), key=lambda one: one[0])[1:], 0
    ):
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
    assert detected["after"]["classes"] == [[2, "1 x"]]


@pytest.mark.parametrize("most", [3, 300, 70000])
def test_labels_come_back(most):
    labels = np.random.default_rng(0).integers(0, min(most, 2**16), (9, 5)).astype(np.int32)
    np.testing.assert_array_equal(scores.unpack_labels(scores.pack_labels(labels)), labels)


def test_a_change_is_shown_signed():
    change = np.float32([[[-2, 0, 2]]])
    np.testing.assert_array_equal(gallery.signed(change, 2.0), [[[0, 128, 255]]])
    np.testing.assert_array_equal(gallery.signed(0 * change, 0.0), [[[128, 128, 128]]])


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_report_is_the_same_and_what_is_stale_goes(tmp_path):
    make_table(tmp_path / "run", ["a", "b"])
    dag_jax.report.write(tmp_path / "run")
    before = snapshot(tmp_path / "run")
    (tmp_path / "run/report_files/clean/0123.webp").write_bytes(b"of an image that is gone")
    dag_jax.report.write(tmp_path / "run")
    assert snapshot(tmp_path / "run") == before
    shutil.rmtree(tmp_path / "run/report_files")
    dag_jax.report.write(tmp_path / "run")
    assert snapshot(tmp_path / "run") == before


def test_one_row_alone_and_a_row_that_is_not_finished(tmp_path):
    make_row(tmp_path / "one", ["a", "b"])
    assert "70.00" in dag_jax.report.write(tmp_path / "one").read_text()
    (tmp_path / "one/row.json").unlink()
    text = dag_jax.report.write(tmp_path / "one").read_text()
    assert "not finished: it has 2 images so far" in text and "70.00" not in text


def test_nothing_to_show_is_said(tmp_path):
    rundir.claim(tmp_path / "run", {"launch": "table1"})
    with pytest.raises(UserError, match="nothing to show"):
        dag_jax.report.write(tmp_path / "run")
    with pytest.raises(UserError):
        dag_jax.report.write(tmp_path / "nowhere")


def cell(added, network, score, clean=80.0, kind="cross-network", **more):
    about = {"added": added, "permuted": False, "split": "s", "network": network, "kind": kind}
    return about | {"images": 9, "score": score, "low": 1.0, "high": 2.0, "clean": clean, **more}


def test_a_matrix_of_transfer_is_a_heat_map(tmp_path):
    cells = [cell([], "a", 80.0), cell(["a"], "a", 8.0, kind="white box"), cell(["a"], "b", None)]
    rundir.claim(tmp_path / "run", {"launch": "transfer"})
    (tmp_path / "run/transfer.json").write_text(json.dumps({"cells": cells}))
    text = dag_jax.report.write(tmp_path / "run").read_text()
    assert "8.0°" in text and "10% of the clean score is left" in text
    (block,) = charts.transfer_blocks(cells)
    assert [source["name"] for source in block["sources"]] == ["none", "a"]


def contrast(one, other):
    def luminance(colour):
        share = np.array(colour) / 255
        linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_on_the_heat_map_can_be_read_at_every_share():
    for share in np.linspace(-0.1, 1.2, 100):
        colour, text = charts._colour(share)
        pixel = [int(number) for number in re.findall(r"\d+", colour)]
        assert contrast(pixel, [255] * 3 if text == "#fff" else [0] * 3) >= 4.5


@pytest.fixture
def opened(browser, run):
    """The page in a browser; what it logs or cannot load fails the test."""
    page, wrong = browser.new_page(), []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda request: wrong.append(request.url))
    page.on("request", lambda r: None if r.url[:5] in ("file:", "data:") else wrong.append(r.url))
    page.set_default_timeout(10_000)
    page.goto(run[2].as_uri())
    page.wait_for_selector(".tile")
    yield page
    page.close()
    assert not wrong


def names(page):
    return page.locator(".tile .name").all_text_contents()


@pytest.mark.slow
def test_filters_sorting_and_pages_show_what_they_say(opened, run):
    records = {one["key"]: one for one in rundir.read(run[0] / "toy").records}
    assert len(names(opened)) == 60
    opened.click("#next")
    assert len(names(opened)) == 5 and opened.inner_text("#page") == "page 2 of 2"
    opened.click("text=fooled as PNG (13)")
    assert set(names(opened)) == {
        key for key, one in records.items() if one["fooled_png"] and one["fooled"]
    }
    opened.click("text=all (65)")
    for order, key in (("largest", "largest_change"), ("steps", "num_steps")):
        opened.select_option("#sort", order)
        expected = sorted((one[key] for one in records.values()), reverse=True)[:60]
        assert [records[name][key] for name in names(opened)] == expected
    opened.select_option("#sort", "visible")
    shown = [records[name]["perceptibility"] for name in names(opened)]
    assert shown == sorted(shown)
    opened.select_option("#sort", "worst")
    assert records[names(opened)[0]]["active_counts"][-1] == 40
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
    assert opened.locator("#viewer img").count() == 5
    assert opened.locator("#viewer img:not([alt]), #viewer img[alt='']").count() == 0
    assert "sheep" not in opened.inner_text("#after") and "<b>dog</b>" in opened.inner_text(
        "#after"
    )
    opened.locator("#slider").focus()
    opened.keyboard.press("End")
    assert opened.evaluate("document.getElementById('compare').style.cssText").endswith(": 0%;")
    opened.keyboard.press("Escape")
    assert not opened.locator("#viewer-title").is_visible()
    opened.locator(".tile").first.press("Enter")
    opened.wait_for_function("document.getElementById('viewer-title').innerText.includes('(1 of')")


@pytest.mark.slow
def test_the_other_row_has_its_own_images_and_boxes(opened):
    opened.select_option("#row", "1")
    opened.wait_for_selector("#row-1")
    opened.locator(".tile").first.click()
    opened.wait_for_selector("#before rect:not(.rim)", state="attached")
    assert opened.locator("#before rect:not(.rim)").count() == 1
    assert opened.locator("#before title").text_content() == "cat 0.9"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_it(opened, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    opened.emulate_media(color_scheme=scheme)
    for width in (400, 832, 1400):
        opened.set_viewport_size({"width": width, "height": 900})
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
    for viewer in (False, True):
        if viewer:
            opened.locator(".tile").first.click()
            opened.wait_for_selector("#curve svg")
        found = axe.Axe().run(opened).response["violations"]
        assert not [(one["id"], one["nodes"][0]["html"]) for one in found]
