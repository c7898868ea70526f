"""What fails in one process is read by another, until it is tried again."""

import threading

import pytest

from dag_jax.errors import UserError
from dag_jax.runs import failures as noting
from dag_jax.runs import rundir
from dag_jax.runs.failures import (
    OthersFailed,
    failures,
    forget,
    images_of,
    noted,
    notes_of,
    others_go_on,
    starting,
    wait_until,
)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "failed" / "fcn_alex"


def fail(folder, process, error):
    """Let a process fail; return what it keeps for its end."""
    errors = []
    with others_go_on(folder, "FCN-Alex", process, errors):
        raise error
    return errors


def test_without_a_failure_nothing_is_written(folder):
    errors = []
    with others_go_on(folder, "FCN-Alex", 1, errors):
        pass
    assert errors == failures(folder) == [] and not folder.exists()


def test_a_failure_is_told_to_others_and_at_the_end(folder):
    assert fail(folder, 1, UserError("no such luck")) == ["FCN-Alex: no such luck"]
    assert failures(folder) == ["process 1: no such luck"]


def test_each_process_says_what_failed(folder):
    for process in (10, 2):
        fail(folder, process, UserError("no such luck"))
    assert failures(folder) == ["process 2: no such luck", "process 10: no such luck"]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MemoryError(), "MemoryError"),
        (OSError(28, "No space left"), "OSError: [Errno 28] No space left"),
        (KeyError("fcn"), "KeyError: 'fcn'"),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero"),
    ],
)
def test_a_fault_of_the_program_is_told_as_well_and_shows_its_traceback(
    folder, capsys, error, text
):
    assert fail(folder, 1, error) == [f"FCN-Alex: {text}"]
    assert failures(folder) == [f"process 1: {text}"]
    assert "Traceback" in capsys.readouterr().err


def test_what_a_user_can_mend_shows_no_traceback(folder, capsys):
    fail(folder, 1, UserError("no such luck"))
    assert capsys.readouterr().err == ""


def test_nobody_waits_for_process_0(folder):
    assert fail(folder, 0, UserError("no such luck")) == ["FCN-Alex: no such luck"]
    assert not folder.exists()


ABOUT = {"launch": "table1", "settings": {"seed": 0, "models": ("a",)}}


def fail_to_start(workdir, process=1, about=ABOUT):
    with pytest.raises(MemoryError), starting(workdir, about, process, 2):
        raise MemoryError


def test_what_ends_a_process_before_it_has_parts_is_told(tmp_path):
    """Process 0 may have claimed the folder by then, or claim it later."""
    fail_to_start(tmp_path / "run", process=0)
    assert not (tmp_path / "run").exists()
    fail_to_start(tmp_path / "run")
    rundir.claim(tmp_path / "run", ABOUT)
    assert failures(notes_of(tmp_path / "run")) == ["process 1: MemoryError"]
    fail_to_start(tmp_path / "run")
    fail(notes_of(tmp_path / "run", "fcn_alex"), 1, UserError("no such luck"))
    folders = notes_of(tmp_path / "run"), notes_of(tmp_path / "run", "fcn_alex")
    assert failures(*folders) == ["process 1: MemoryError", "process 1: no such luck"]
    with starting(tmp_path / "run", ABOUT, 1, 2):
        assert failures(*folders) == []


@pytest.mark.parametrize("kind", ["another launch", "other settings", "something else"])
def test_a_folder_of_something_else_is_left_alone(tmp_path, kind):
    if kind == "something else":
        (tmp_path / "mine.txt").write_text("mine")
    else:
        changes = {"launch": "shapes"} if kind == "another launch" else {"settings": {"seed": 1}}
        rundir.claim(tmp_path, ABOUT | changes)
    before = sorted(tmp_path.rglob("*"))
    fail_to_start(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), SystemExit("bye")])
def test_what_ends_a_process_is_told_of_every_part(tmp_path, error):
    folders = [tmp_path / "failed" / name for name in ("fcn_alex", "fr_zf_07")]
    with pytest.raises(type(error)), noted(folders, 1):
        raise error
    for folder in folders:
        (text,) = failures(folder)
        assert text.startswith(f"process 1: {type(error).__name__}")


def test_a_failure_that_cannot_be_written_down_hides_no_error(folder, capsys):
    folder.parent.write_text("a file where the folder would be")
    assert fail(folder, 1, UserError("no such luck")) == ["FCN-Alex: no such luck"]
    assert "other processes do not know that this one failed" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe half"])
def test_a_note_that_cannot_be_read_is_a_failure_for_an_unknown_reason(folder, content):
    folder.mkdir(parents=True)
    (folder / "1.txt").write_bytes(content)
    (text,) = failures(folder)
    assert text.startswith("process 1: it failed, and ") and "1.txt does not say why" in text
    forget([folder], 1, 2)
    assert failures(folder) == []


def test_a_note_that_was_being_written_blocks_nothing(folder):
    folder.mkdir(parents=True)
    (folder / "1.txt.tmp-0123abcd").write_text("half")
    assert failures(folder) == []
    forget([folder], 1, 2)
    assert list(folder.iterdir()) == []


def test_other_files_are_left_alone(folder):
    folder.mkdir(parents=True)
    (folder / ".DS_Store").write_text("")
    forget([folder], 0, 1)
    assert failures(folder) == [] and (folder / ".DS_Store").exists()


def test_a_process_forgets_its_own_failure_alone(folder):
    fail(folder, 1, UserError("no such luck"))
    forget([folder], 2, 3)
    assert failures(folder) == ["process 1: no such luck"]
    forget([folder], 1, 3)
    assert failures(folder) == []


def test_process_0_forgets_those_of_processes_that_are_no_more(folder):
    for process in (2, 5):
        fail(folder, process, UserError("stale"))
    forget([folder], 0, 3)
    assert failures(folder) == ["process 2: stale"]


def test_waiting_ends_when_it_is_there():
    looks = iter([False, False, True])
    wait_until(lambda: next(looks), lambda: "nothing", lambda: [])


def test_what_is_there_counts_before_what_failed():
    wait_until(lambda: True, lambda: "nothing", lambda: ["process 1: no such luck"])


def test_waiting_ends_when_another_process_fails(folder):
    later = threading.Timer(0.3, fail, (folder, 1, MemoryError()))
    later.start()
    with pytest.raises(OthersFailed, match="process 1: MemoryError"):
        wait_until(lambda: False, lambda: "nothing", lambda: failures(folder))
    later.join()


def test_who_waited_in_vain_did_not_fail_itself(folder):
    fail(folder, 1, UserError("no such luck"))
    errors = []
    with others_go_on(folder, "FCN-Alex", 0, errors):
        wait_until(lambda: False, lambda: "nothing", lambda: failures(folder))
    assert errors == ["FCN-Alex: process 1: no such luck"]
    assert failures(folder) == ["process 1: no such luck"]


def test_waiting_says_for_whom(capsys, monkeypatch):
    monkeypatch.setattr(noting, "_TOLD", 0.0)
    looks = iter([False, True])
    wait_until(lambda: next(looks), lambda: images_of({2: 1, 0: 0, 1: 12}), lambda: [])
    assert capsys.readouterr().err == (
        "waiting for 12 images of process 1 and 1 image of process 2\n"
    )
