"""The HTML report: what it says is what the run says, it needs no network, and it works."""

import collections
import json
import re
import shutil
import urllib.parse

import pytest

import dag_jax.report
from dag_jax.errors import UserError
from dag_jax.report import gallery
from dag_jax.report.html import _script_json
from dag_jax.runs import findings, rundir
from tests.report.toy_run import ODD, loaded, make_row, make_table


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
    assert len(re.findall(r"% interval \S+ to \S+</dd>", text)) == len(cards)
    assert f"{findings.LEVEL:.0%} interval 60.00 to 80.00" in text
    assert "raise --max_steps" in text and "1 of 2 hold" in text


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


@pytest.mark.slow
def test_claims_words_and_manifests_can_be_read(opened, run):
    verdicts = opened.locator(".claims .chip").all_inner_texts()
    assert verdicts == ["✓ holds", "? not shown"] + [f"? {findings.FEW}"] * 2
    assert "-1.00 [-3.00, -0.50]" in opened.inner_text(".claims")
    words = opened.locator(".words dt").all_inner_texts()
    assert {"target", "margin", "clean, ORIG", "shuffled, PERM", "p", "fooled as PNG"} <= {*words}
    opened.click("text=manifest.json of Toy")
    assert '"rounded": false' in opened.locator("#manifest ~ details[open]").inner_text()
    for link in opened.locator("header nav a").all():
        assert opened.locator(link.get_attribute("href")).count() == 1


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
        violations = axe.Axe().run(opened).response["violations"]
        assert not [(rule["id"], rule["nodes"][0]["html"]) for rule in violations]
