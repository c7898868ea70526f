"""What the HTML report says of images and rows that a run lacks."""

import dag_jax.report
from dag_jax import files
from dag_jax.report import failures
from dag_jax.runs.failures import notes_of
from tests.report.toy_run import make_row, make_table


def test_failures_of_a_row_are_counted_and_named():
    records = [{"key": f"{i}", "status": "NON_FINITE"} for i in range(23)]
    records += [{"key": "a", "status": "ZERO_GRADIENT"}, {"key": "b", "status": "FOOLED"}]
    row = {"skipped": 3, "skipped_files": ["a.png is cut"]}
    skipped, zero, infinite = failures.of_row(row, records)
    assert (skipped["count"], skipped["names"], skipped["more"]) == (3, [], 2)
    assert skipped["files"] == ["a.png is cut"]
    assert (zero["count"], zero["names"], zero["more"]) == (1, ["a"], 0)
    assert (infinite["count"], len(infinite["names"]), infinite["more"]) == (23, 20, 3)
    assert failures.of_row({}, [{"key": "b", "status": "FOOLED"}]) == []


def test_rows_that_are_not_made_and_processes_that_failed_are_named(tmp_path):
    make_table(tmp_path, ["a", "b"])
    assert failures.of_run(tmp_path, ["toy"]) == []
    make_row(tmp_path / "mine%3Aload", ["a"])
    (tmp_path / "mine%3Aload" / "row.json").unlink()
    files.make_folder(notes_of(tmp_path, "mine:load"))
    files.write(notes_of(tmp_path, "mine:load") / "1.txt", "the disk <is> full")
    row, process = failures.of_run(tmp_path, ["toy"])
    assert "(mine:load) has no scores; 1 image is finished" in row
    assert process == "process 1: the disk <is> full"
    text = dag_jax.report.write(tmp_path).read_text()
    assert "What this run lacks" in text and "the disk &lt;is&gt; full" in text


def test_a_row_with_scores_lacks_nothing(tmp_path):
    make_row(tmp_path / "run", ["a"])
    text = dag_jax.report.write(tmp_path / "run").read_text()
    assert "What this run lacks" not in text
    assert "None: every image was read" not in text and "2 images</strong>: the file could" in text
    assert "<li>b&lt;b&gt;.png is cut</li></ul>And 1 more. " in text
