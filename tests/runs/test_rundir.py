"""Folders that last: what a kill, a full disk and damage leave, and what other code reads."""

import errno
import importlib.util
import inspect
import io
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import dag_jax
from dag_jax import files
from dag_jax.errors import DamagedError, StorageError, UserError
from dag_jax.runs import rundir

RUNS = pathlib.Path(rundir.__file__).parent
PACKAGE = RUNS.parent
MANIFEST = {"network": "fcn_alex", "weights_sha256": "ab", "margin": 0.0}
KEYS = [f"{number:06d}" for number in range(10)]


def attack_of(index):
    rng = np.random.default_rng(index)
    image = rng.integers(0, 256, (4, 5, 3), np.uint8)
    return image, rng.normal(0, 9, image.shape).astype(np.float32)


def record_of(index):
    return {"status": "FOOLED", "num_steps": index, "counts": [9, index], "p": index / 7}


def open_results(folder, keys=KEYS, **options):
    return rundir.Results(folder, MANIFEST, keys, **options)


def add(results, indices):
    for index in indices:
        results.add(index, *attack_of(index), record_of(index), seconds=random.random())


def put(results, indices):
    for index in indices:
        results.put("confusion", index, {"counts": np.full(3, index), "flag": np.bool_(True)})


def complete(results):
    """Do what a launch does, of what is not there."""
    add(results, results.todo())
    put(results, [index for index in results.process_rows() if not results.has("confusion", index)])
    return results


def bytes_of(folder):
    """Return {name: bytes} of all that two runs agree on."""
    paths = [path for path in pathlib.Path(folder).rglob("*") if path.is_file()]
    names = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    return {name: data for name, data in names.items() if not name.startswith("timings")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished folder."""
    folder = tmp_path_factory.mktemp("whole") / "fcn_alex"
    complete(open_results(folder)).records()
    return folder


@pytest.mark.parametrize("seed", range(3))
def test_bytes_do_not_depend_on_the_order(whole, tmp_path, seed):
    order = list(range(len(KEYS)))
    random.Random(seed).shuffle(order)
    results = open_results(tmp_path / "run")
    add(results, order[:5])
    results = open_results(tmp_path / "run")
    assert results.todo() == sorted(order[5:])
    assert results.done() == {i: {"key": KEYS[i]} | record_of(i) for i in sorted(order[:5])}
    add(results, order[5:])
    put(results, order)
    assert results.todo() == [] and results.is_complete("confusion")
    assert bytes_of(tmp_path / "run") == bytes_of(whole)
    results = complete(open_results(tmp_path / "run"))  # once more over what is finished
    assert results.records() == rundir.read(whole).records
    assert bytes_of(tmp_path / "run") == bytes_of(whole)


def test_what_a_finished_folder_holds(whole):
    paths = {path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file()}
    assert paths == {"manifest.json"} | {
        name.format(key)
        for key in KEYS
        for name in (
            "images/{}.png",
            "perturbations/{}.safetensors",
            "scores/confusion/{}.safetensors",
            "timings/{}.json",
        )
    }
    timing = files.load_json(whole / "timings" / "000003.json", digest=True)
    assert timing["key"] == "000003" and 0 < timing["seconds"] < 1
    assert b"seconds" not in (whole / "perturbations" / "000003.safetensors").read_bytes()


def test_reader_on_a_finished_folder(whole):
    run = rundir.read(str(whole))
    assert run.keys == KEYS and run.manifest["network"] == "fcn_alex"
    assert run.manifest["units"]["margin"] == "logits"
    assert run.records == [{"key": key} | record_of(i) for i, key in enumerate(KEYS)]
    for index, key in enumerate(KEYS):
        image, perturbation = attack_of(index)
        assert run.record(key) == run.records[index]
        np.testing.assert_array_equal(run.perturbation(key), perturbation, strict=True)
        saved = dag_jax.perturb(image.astype(np.float32), perturbation, rounded=True)
        np.testing.assert_array_equal(run.image(key), np.uint8(saved), strict=True)
        with Image.open(whole / "images" / f"{key}.png") as file:
            np.testing.assert_array_equal(np.asarray(file), run.image(key))
        np.testing.assert_array_equal(run.get("confusion", key)["counts"], [index] * 3)
    for read in (run.perturbation, run.image, run.record):
        with pytest.raises(UserError, match=r"fcn_alex/perturbations/nothing\.\w+: no such file"):
            read("nothing")


def test_reader_on_an_unfinished_folder(tmp_path):
    results = open_results(tmp_path / "run")
    add(results, [7, 1, 0])
    run = rundir.read(tmp_path / "run")
    assert run.keys == [KEYS[i] for i in (0, 1, 7)]
    assert [record["num_steps"] for record in run.records] == [0, 1, 7]
    np.testing.assert_array_equal(run.perturbation(KEYS[7]), attack_of(7)[1])
    assert not results.is_complete()
    with pytest.raises(UserError, match="7 of 10 images are not done; the same command"):
        results.records()
    with pytest.raises(UserError, match="no such file"):
        rundir.read(tmp_path)


def test_a_folder_of_something_else_is_not_read(tmp_path):
    rundir.claim(tmp_path / "run", {"format": "dag_jax results 1"})
    with pytest.raises(UserError, match="run holds no 'dag_jax results 2'"):
        rundir.read(tmp_path / "run")


def test_a_selection_may_grow_and_change(whole, tmp_path):
    complete(open_results(tmp_path / "run", KEYS[:4]))
    results = open_results(tmp_path / "run")
    assert results.todo() == [4, 5, 6, 7, 8, 9]
    complete(results)
    assert bytes_of(tmp_path / "run") == bytes_of(whole)
    few = open_results(tmp_path / "run", [KEYS[8], KEYS[2]])
    assert few.todo() == [] and few.is_complete("confusion")
    assert [record["num_steps"] for record in few.records()] == [8, 2]
    assert few.get("confusion", 0)["counts"].tolist() == [8, 8, 8]
    selection = open_results(tmp_path / "run", ["other", KEYS[2]])
    assert selection.todo() == [0] and selection.done().keys() == {1}
    assert bytes_of(tmp_path / "run") == bytes_of(whole)


def test_images_are_rounded_and_read_back_as_written(tmp_path):
    image = np.zeros((1, 4, 3), np.float32)
    image[0, :, 0] = 10, 11, 250, 3
    image[0, :, 1] = 0.25, 254.5, 255, 0.5
    change = np.zeros_like(image)
    change[0, :, 0] = 0.5, 0.5, 6, -3.5  # 10.5 and 11.5 go to the even number
    change[0, :, 2] = 1e9, -1e9, 1.4999999, 255.6
    results = rundir.Results(tmp_path / "run", {}, ["a"])
    results.add(0, image, change, {}, 0.0)
    expected = np.zeros((1, 4, 3), np.uint8)
    expected[0, :, 0] = 10, 12, 255, 0
    expected[0, :, 1] = 0, 254, 255, 0
    expected[0, :, 2] = 255, 0, 1, 255
    np.testing.assert_array_equal(rundir.read(tmp_path / "run").image("a"), expected, strict=True)
    np.testing.assert_array_equal(np.uint8(dag_jax.perturb(image, change, rounded=True)), expected)


def test_a_record_is_the_same_before_and_after_it_is_read(tmp_path):
    results = rundir.Results(tmp_path / "run", {}, ["a"])
    results.add(0, *attack_of(0), {"counts": (1, 2), "key": "b"}, {"finished": 1.5})
    expected = {"counts": [1, 2], "key": "a"}
    assert results.records() == [expected] == rundir.read(tmp_path / "run").records


def test_what_no_image_can_hold_is_refused(tmp_path):
    results = open_results(tmp_path / "run")
    image, change = attack_of(0)
    for value in (np.nan, np.inf):
        change[0, 0, 0] = value
        with pytest.raises(UserError, match=r"'000000': .* not finite; nothing was written"):
            results.add(0, image, change, {}, 0.0)
    with pytest.raises(UserError, match=r"image is \(4, 5, 3\), perturbation \(4, 5\)"):
        results.add(0, image, change[..., 0], {}, 0.0)
    with pytest.raises(UserError, match="JSON"):
        results.add(0, *attack_of(0), {"p": float("nan")}, 0.0)
    for index in (10, -1):
        with pytest.raises(UserError, match=f"image {index} is of another process, or not of the"):
            results.add(index, *attack_of(0), {}, 0.0)
    assert results.todo() == list(range(10))
    assert not any((tmp_path / "run" / "images").iterdir())


def test_any_character_in_a_key(tmp_path):
    keys = ["../up", "a/b", "ä ö", "%2F", "a.b.png", ".", "..", "a~", 'x"\n', "a.tmp-01234567"]
    keys += ["__metadata__", os.fsdecode(b"caf\xe9"), "a" * 230]
    add(open_results(tmp_path / "run", keys), range(9))
    results = complete(open_results(tmp_path / "run", keys))
    assert [record["key"] for record in results.records()] == keys
    run = rundir.read(tmp_path / "run")
    assert run.keys == sorted(keys)
    for index, key in enumerate(keys):
        np.testing.assert_array_equal(run.perturbation(key), attack_of(index)[1])
        assert run.image(key).shape == (4, 5, 3)
    assert len(list((tmp_path / "run" / "images").iterdir())) == len(keys)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_stranger_among_the_images_is_no_image(tmp_path):
    add(open_results(tmp_path / "run"), [0])
    for folder in ("images", "perturbations", "scores"):
        for name in (".DS_Store", "a b.png", "a b.safetensors", "%zz.png", "%zz.safetensors"):
            (tmp_path / "run" / folder / name).write_text("")
    assert rundir.read(tmp_path / "run").keys == [KEYS[0]]
    assert open_results(tmp_path / "run").todo() == list(range(1, 10))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([], "there is no image"),
        (["a", "b", "a"], "2 images of the id 'a'"),
        (["a", ""], "name no file: ''"),
        (["ä" * 100], "name no file: 'ä"),
        (["a" * 231], "name no file: 'aaa"),
        ([139], "no text: 139"),
        (["\ud800"], "no text: "),
    ],
)
def test_keys_that_cannot_be_are_named(tmp_path, keys, message):
    with pytest.raises(UserError, match=message):
        open_results(tmp_path / "run", keys)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_other_settings_is_refused(whole):
    before = bytes_of(whole)
    with pytest.raises(UserError, match=r"\(margin: now 3.0, there 0.0\)"):
        rundir.Results(whole, MANIFEST | {"margin": 3.0}, KEYS)
    assert bytes_of(whole) == before


def test_results_of_another_version_may_be_accepted(tmp_path):
    now, then = (MANIFEST | {"provenance": {"code": code}} for code in ("cd", "ab"))
    add(rundir.Results(tmp_path / "run", then, KEYS), [0])
    with pytest.raises(UserError, match="--accept_version"):
        rundir.Results(tmp_path / "run", now, KEYS)
    results = rundir.Results(tmp_path / "run", now, KEYS, accept_version=True)
    assert results.todo() == list(range(1, 10))
    assert rundir.accepted(results.folder) == [{"then": {"code": "ab"}, "now": {"code": "cd"}}]


def test_two_processes_share_a_folder(whole, tmp_path):
    first, second = (
        open_results(tmp_path / "run", process=process, processes=2) for process in range(2)
    )
    assert (first.process_rows(), second.process_rows()) == ([0, 2, 4, 6, 8], [1, 3, 5, 7, 9])
    complete(first)
    add(second, [3])
    for write in (add, put):
        with pytest.raises(UserError, match="image 5 is of another process"):
            write(first, [5])
    with pytest.raises(UserError, match="4 of 10 images are not done"):
        first.records()
    # What the second is writing is not the first's to tidy up.
    partial = tmp_path / "run" / "images" / "000005.png.tmp-0123abcd"
    partial.write_text("half")
    first = open_results(tmp_path / "run", process=0, processes=2)
    assert first.todo() == [] and partial.exists() and not first.is_complete()
    alone = open_results(tmp_path / "run")  # goes on in one process
    assert alone.todo() == [1, 5, 7, 9] and not partial.exists()
    add(alone, alone.todo())
    assert first.is_complete() and not first.is_complete("confusion")
    assert first.has("confusion", 4) and not first.has("confusion", 5)
    complete(alone)
    assert first.is_complete("confusion") and first.get("confusion", 5)["flag"]
    assert first.records() == rundir.read(whole).records
    assert bytes_of(tmp_path / "run") == bytes_of(whole)
    with pytest.raises(UserError, match="process 2 of 2"):
        open_results(tmp_path / "run", process=2, processes=2)


def test_small_arrays_come_back_as_they_went(tmp_path):
    results = open_results(tmp_path / "run")
    results.put("confusion", 1, {"counts": np.arange(6).reshape(2, 3).T, "flag": np.bool_(True)})
    arrays = results.get("confusion", 1)
    np.testing.assert_array_equal(arrays["counts"], [[0, 3], [1, 4], [2, 5]])
    assert arrays["flag"].shape == () and arrays["flag"]
    with pytest.raises(UserError, match="no such file"):
        results.get("confusion", 0)
    for name in ("a-b", "", "../a", "ä"):
        with pytest.raises(UserError, match="names no scores"):
            results.put(name, 0, {})


def truncate(data):
    return data[: len(data) // 2]


def flip(data):
    return data[:-9] + bytes([data[-9] ^ 4]) + data[-8:]


def flip_record(data):
    place = data.index(b"FOOLED")
    return data[:place] + b"G" + data[place + 1 :]


def empty(data):
    return b""


CHANGE, PNG = "perturbations/000006.safetensors", "images/000006.png"
SCORE = "scores/confusion/000006.safetensors"


@pytest.mark.parametrize(
    ("name", "damage"),
    [(CHANGE, damage) for damage in (truncate, flip, flip_record, empty)]
    + [(PNG, damage) for damage in (truncate, empty)],
)
def test_damage_is_named_and_made_good(whole, tmp_path, name, damage):
    folder = tmp_path / "run"
    results = open_results(folder)
    add(results, [0, 1, 5, 6, 9])
    put(results, [5, 6])
    path = folder / name
    path.write_bytes(damage(path.read_bytes()))
    (folder / "images" / "000003.png.tmp-0123abcd").write_text("half")
    before = bytes_of(folder)
    with pytest.raises(UserError) as error:
        open_results(folder)
    assert str(error.value).startswith(f"{path} is damaged (")
    assert "Delete that file: the same command then makes anew what was in" in str(error.value)
    assert bytes_of(folder) == before
    with pytest.raises(DamagedError, match=re.escape(f"{path} is damaged")):
        run = rundir.read(folder)
        run.perturbation("000006"), run.image("000006")
    path.unlink()
    results = open_results(folder)
    assert results.todo() == [2, 3, 4, 6, 7, 8]
    complete(results)
    assert bytes_of(folder) == bytes_of(whole)


def test_all_that_is_damaged_is_named_at_once(tmp_path):
    folder = tmp_path / "run"
    add(open_results(folder), range(4))
    for name in ("images/000001.png", "perturbations/000003.safetensors"):
        (folder / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"000001\.png is damaged .*\n.*000003\.saf\w+ is damaged"):
        open_results(folder)
    # Nor is what other processes have read before it is needed.
    assert open_results(folder, process=0, processes=2).done().keys() == {0, 2}


@pytest.mark.parametrize("damage", [truncate, flip, empty])
def test_damaged_scores_are_named_and_made_good(whole, tmp_path, damage):
    folder = tmp_path / "run"
    results = complete(open_results(folder))
    path = folder / SCORE
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DamagedError, match=re.escape(f"{path} is damaged")):
        results.get("confusion", 6)
    path.unlink()
    complete(results)
    assert bytes_of(folder) == bytes_of(whole)


def test_a_file_of_another_image_is_named(tmp_path):
    folder = tmp_path / "run"
    complete(open_results(folder))
    for name in ("perturbations/{}.safetensors", "scores/confusion/{}.safetensors"):
        (folder / name.format(KEYS[0])).replace(folder / name.format(KEYS[1]))
    run = rundir.read(folder)
    for read in (run.perturbation, run.record, lambda key: run.get("confusion", key)):
        with pytest.raises(DamagedError, match=r"000001\.safetensors is damaged .* image '000000'"):
            read(KEYS[1])


@pytest.mark.parametrize("kind", ["perturbations", "scores/confusion"])
def test_a_file_of_another_run_is_named(whole, tmp_path, kind):
    """The same image, attacked and scored with other weights."""
    manifest = MANIFEST | {"weights_sha256": "cd"}
    complete(rundir.Results(tmp_path / "run", manifest, KEYS[:2])).records()
    shutil.copy(whole / kind / "000001.safetensors", tmp_path / "run" / kind)
    message = f"{kind}/000001.safetensors is damaged .it is of another run"
    with pytest.raises(UserError, match=message):
        rundir.Results(tmp_path / "run", manifest, KEYS[:2])
    run = rundir.read(tmp_path / "run")
    with pytest.raises(DamagedError, match=message):
        run.perturbation("000001") if kind == "perturbations" else run.get("confusion", "000001")


@pytest.mark.parametrize(
    ("content", "array", "message"),
    [
        ({}, np.zeros((4, 5, 3), np.float32), "'record'"),
        ({"record": 3, "pixels_sha256": "ab"}, np.zeros((4, 5, 3), np.float32), "no record or no"),
        ({"record": {}, "pixels_sha256": 3}, np.zeros((4, 5, 3), np.float32), "no record or no"),
        ({"record": {}, "pixels_sha256": ""}, np.zeros((4, 5, 3)), r"float64\[4, 5, 3\]"),
        ({"record": {}, "pixels_sha256": ""}, np.zeros((4, 5), np.float32), r"float32\[4, 5\]"),
    ],
)
def test_what_no_attack_writes_is_damaged(tmp_path, content, array, message):
    """Whoever wrote it with a right digest."""
    results = open_results(tmp_path / "run", KEYS[:1])
    add(results, [0])
    path = results.folder / "perturbations" / f"{KEYS[0]}.safetensors"
    content = {"kind": "perturbations", "key": KEYS[0], **content}
    files.write(path, files.pack({"perturbation": array}, content))
    with pytest.raises(DamagedError, match=message):
        rundir.read(results.folder).perturbation(KEYS[0])
    files.write(path, files.pack({}, [content]))
    with pytest.raises(DamagedError, match="perturbations/000000.safetensors is damaged"):
        rundir.read(results.folder).record(KEYS[0])


def test_an_image_made_anew_loses_its_old_scores(tmp_path):
    results = complete(open_results(tmp_path / "run", KEYS[:2]))
    (results.folder / "images" / "000001.png").unlink()
    results = open_results(tmp_path / "run", KEYS[:2])
    assert results.has("confusion", 1)
    results.add(1, *attack_of(7), record_of(7), 0.0)
    assert results.has("confusion", 0) and not results.has("confusion", 1)
    put(results, [1])
    assert open_results(tmp_path / "run", KEYS[:2]).is_complete("confusion")


def test_who_is_late_is_known(tmp_path):
    results = open_results(tmp_path / "run", KEYS[:5], process=1, processes=2)
    assert results.missing() == {0: 3, 1: 2}
    complete(results)
    assert results.missing() == results.missing("confusion") == {0: 3}
    run = rundir.read(results.folder)
    assert run.has("confusion", KEYS[1]) and not run.has("confusion", KEYS[0])


def test_lost_timings_are_no_error(tmp_path):
    results = complete(open_results(tmp_path / "run"))
    assert results.timing(3)["seconds"] < 1
    shutil.rmtree(tmp_path / "run" / "timings")
    assert results.timing(3) == {}
    assert open_results(tmp_path / "run").records() == results.records()


def child(script, *arguments, prefix=()):
    """Run a script that has the functions above, and return what it prints, which is JSON.

    It imports the run folder and nothing else of the package, so that it starts and forks fast.
    """
    shared = [attack_of, record_of, open_results, add, put, complete, bytes_of]
    head = (
        "import json, os, pathlib, random, resource, shutil, signal, subprocess, sys, time, types\n"
        "import numpy as np\n"
        f"for name, path in (('dag_jax', {str(PACKAGE)!r}), ('dag_jax.runs', {str(RUNS)!r})):\n"
        "    sys.modules[name] = types.ModuleType(name)\n"
        "    sys.modules[name].__path__ = [path]\n"
        "from dag_jax import files\n"
        "from dag_jax.errors import StorageError\n"
        "from dag_jax.runs import rundir\n"
        f"MANIFEST, KEYS = {MANIFEST!r}, {KEYS!r}\n"
    )
    source = "\n\n".join([head, *map(inspect.getsource, shared), FORKED, script])
    command = [*prefix, sys.executable, "-c", source, *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


FORKED = """
def forked(function):
    "Start a function in a process of its own."
    pid = os.fork()
    if pid == 0:
        try:
            function()
            os._exit(0)
        finally:
            os._exit(1)
    return pid


def wait(pid):
    "Return a process's exit code; less than 0 is a signal."
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""

RANDOM_KILLS = """
out, moments = pathlib.Path(sys.argv[1]), random.Random(0)
kills, runs, reported, known = 0, 0, set(), []
started = time.perf_counter()
complete(open_results(out / "timed"))
longest = (time.perf_counter() - started) / 4  # of a launch's life; a machine may slow down

def launch():
    results = open_results(folder)
    for index in results.todo():
        add(results, [index])
        os.write(write_end, bytes([index]))
    complete(results).records()

while kills < 100:
    folder = out / f"run{runs}"
    read_end, write_end = os.pipe()
    pid = forked(launch)
    time.sleep(moments.uniform(0, longest))
    os.kill(pid, signal.SIGKILL)
    code = wait(pid)
    os.close(write_end)
    finished = set(os.read(read_end, 4096)) - reported
    longest *= 0.8 if finished else 1.25
    reported |= finished
    os.close(read_end)
    if (folder / "manifest.json").exists():
        done = {int(key) for key in rundir.read(folder).keys}
        assert reported <= done, (reported, done)
        known.append(len(done))
    if code == 0:
        runs, reported = runs + 1, set()
    else:
        assert code == -signal.SIGKILL, code
        kills += 1
complete(open_results(folder)).records()
print(json.dumps([runs, sorted(set(known))]))
"""


@pytest.mark.slow
def test_killed_at_a_hundred_random_moments(whole, tmp_path):
    runs, known = child(RANDOM_KILLS, tmp_path)
    folders = sorted(tmp_path.glob("run*"))
    assert len(folders) in (runs, runs + 1) and len(known) > 5, (runs, known)
    for folder in folders:
        assert bytes_of(folder) == bytes_of(whole), folder


KILLS_BETWEEN = """
out, counted = pathlib.Path(sys.argv[1]), ("replace", "remove", "unlink", "mkdir", "fsync")

def launch():
    left = [moment]
    def dying(call):
        def dies(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)
        return dies
    for name in counted:
        setattr(os, name, dying(getattr(os, name)))
    results = open_results(folder, KEYS[:2])
    add(results, [1, 0])
    complete(results).records()

for moment in range(200):
    folder = out / f"run{moment}"
    code = wait(forked(launch))
    assert code in (0, -signal.SIGKILL), code
    wait(forked(lambda: complete(open_results(folder, KEYS[:2])).records()))
    if code == 0:
        break
print(moment)
"""


@pytest.mark.slow
def test_killed_before_each_change_of_a_file(tmp_path):
    moments = child(KILLS_BETWEEN, tmp_path)
    assert 20 < moments < 199
    expected = bytes_of(tmp_path / f"run{moments}")
    for moment in range(moments):
        assert bytes_of(tmp_path / f"run{moment}") == expected, moment


AT_ONCE = """
out = pathlib.Path(sys.argv[1])
for number in range(5):
    begin, ready = os.pipe()
    def launch(process):
        os.read(begin, 1)
        results = open_results(out / f"run{number}", process=process, processes=3)
        complete(results)
        while not results.is_complete("confusion"):
            time.sleep(0.001)
        results.records()
    pids = [forked(lambda process=process: launch(process)) for process in range(3)]
    os.write(ready, b"123")
    assert [wait(pid) for pid in pids] == [0, 0, 0]
print(5)
"""


@pytest.mark.slow
def test_three_processes_write_at_the_same_time(whole, tmp_path):
    for number in range(child(AT_ONCE, tmp_path)):
        assert bytes_of(tmp_path / f"run{number}") == bytes_of(whole)


UNREADABLE = """
folder, errors = pathlib.Path(sys.argv[1]), {}
results = rundir.Results(folder, MANIFEST, ["a"])
results.add(0, np.zeros((2048, 2048, 3), np.uint8), np.zeros((2048, 2048, 3), np.float32), {}, 0)

def attempt(kind, prepare):
    read_end, write_end = os.pipe()
    def launch():
        prepare()
        try:
            rundir.Results(folder, MANIFEST, ["a"])
        except StorageError as error:
            os.write(write_end, str(error).encode())
    assert wait(forked(launch)) == 0
    errors[kind] = os.read(read_end, 4096).decode()

def little_memory():
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + 2**25, -1))

def nobody():
    os.chmod(folder / "perturbations" / "a.safetensors", 0)
    if os.getuid() == 0:
        os.setuid(65534)

attempt("memory", little_memory)
attempt("permission", nobody)
print(json.dumps(errors))
"""


@pytest.mark.slow
def test_what_cannot_be_read_now_is_not_to_be_deleted(tmp_path):
    errors = child(UNREADABLE, tmp_path / "run")
    for kind, reason in (("memory", "Cannot allocate memory"), ("permission", "Permission denied")):
        assert errors[kind].startswith(f"{tmp_path / 'run'}"), errors
        text = f" cannot be read now, and nothing is known to be wrong with it: {reason}"
        assert text in errors[kind] and "elete" not in errors[kind]


TROUBLE = """
trouble, folder, out = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3]

def mount(*options):
    subprocess.run(["mount", *options, str(folder)], check=True)

def begin():
    if trouble == "limited":
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, resource.RLIM_INFINITY))
    elif trouble == "read-only":
        mount("-o", "remount,ro")

def end():
    if trouble == "limited":
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
    else:
        mount("-o", "remount,rw,size=1m")

if trouble != "limited":
    mount("-t", "tmpfs", "-o", "size=64k" if trouble == "full" else "size=1m", "none")
results = open_results(folder / "run")
add(results, [5, 0])
begin()
finished, error = [0, 5], None
for index in [1, 2, 3, 4, 6, 7, 8]:
    try:
        add(results, [index])
        finished.append(index)
    except OSError as found:
        error = found
        break
left = [path.name for path in folder.rglob("*.tmp-*")]
kept = [int(key) for key in rundir.read(folder / "run").keys]
end()
complete(open_results(folder / "run")).records()
shutil.copytree(folder / "run", out)
print(json.dumps([finished, error.errno, str(error), left, kept]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trouble", "number", "reason"),
    [
        ("full", errno.ENOSPC, "No space left on device (make room on that disk)"),
        ("read-only", errno.EROFS, "Read-only file system (make it writable)"),
        ("limited", errno.EFBIG, "File too large (raise the limit on the size of a file)"),
    ],
)
def test_a_folder_that_cannot_be_written(whole, tmp_path, trouble, number, reason):
    prefix, folder = [], tmp_path / "disk"
    folder.mkdir()
    if trouble != "limited":
        prefix = ["unshare", "--map-root-user", "--mount"]
        probe = [*prefix, "mount", "-t", "tmpfs", "none", folder]
        if not shutil.which("unshare") or subprocess.run(probe, capture_output=True).returncode:
            pytest.skip("this user can mount no file system of its own")
    arguments = trouble, folder, tmp_path / "out"
    finished, error_number, message, drafts, stored = child(TROUBLE, *arguments, prefix=prefix)
    assert error_number == number and str(folder / "run") in message and reason in message
    assert sorted(stored) == sorted(finished) and 2 <= len(stored) < 9 and drafts == []
    assert f"{len(stored)} of the 10 images of this process are finished and kept; " in message
    assert bytes_of(tmp_path / "out") == bytes_of(whole)


def test_a_full_disk_at_any_write(whole, tmp_path, monkeypatch):
    fsync = os.fsync
    for moment in range(1, 40, 5):
        moments = [moment]

        def full(file, moments=moments):
            moments[0] -= 1
            if moments[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(file)

        results = open_results(tmp_path / f"run{moment}")
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"cannot be written: No space left .* finished and kept"):
            complete(results)
        monkeypatch.setattr(os, "fsync", fsync)
        assert not list((tmp_path / f"run{moment}").rglob("*.tmp-*"))
        complete(results).records()  # and the same object goes on
        assert bytes_of(results.folder) == bytes_of(whole)


def test_a_folder_that_is_gone(tmp_path):
    results = open_results(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(StorageError, match="its folder is not there") as error:
        add(results, [0])
    assert "kept" not in str(error.value) and error.value.errno == errno.ENOENT


class Broken(bytes):
    """An object whose connection breaks with its `error`."""


@pytest.fixture
def bucket(monkeypatch):
    """The objects of s3://, which epath opens by fsspec; they are in memory, and whole or not."""
    if importlib.util.find_spec("tensorflow"):
        pytest.skip("with TensorFlow installed, epath opens buckets by it and not by fsspec")
    fsspec = pytest.importorskip("fsspec")
    objects = {}

    class Upload(io.BytesIO):
        def close(self):
            if not self.closed:
                objects[self.name] = self.getvalue()
            super().close()

    class Download(io.BytesIO):
        def read(self, *arguments):
            if isinstance(objects[self.name], Broken):
                raise objects[self.name].error
            return super().read(*arguments)

    class Bucket(fsspec.AbstractFileSystem):
        protocol, cachable = "s3", False

        def _open(self, path, mode="rb", **kwargs):
            if mode != "rb":
                file = Upload()
                file.name = path
                return file
            if path not in objects:
                raise FileNotFoundError(path)
            file = Download(objects[path])
            file.name = path
            return file

        def ls(self, path, detail=True, **kwargs):
            path = self._strip_protocol(path).rstrip("/")
            kinds = {}
            for name in objects:
                if name == path:
                    kinds[name] = "file"
                elif name.startswith(path + "/"):
                    child, _, deeper = name[len(path) + 1 :].partition("/")
                    kinds[f"{path}/{child}"] = "directory" if deeper else "file"
            if not kinds:
                raise FileNotFoundError(path)
            rows = [
                {"name": n, "type": kind, "size": len(objects.get(n, b""))}
                for n, kind in kinds.items()
            ]
            return rows if detail else list(kinds)

        def rm_file(self, path):
            del objects[path]

    fsspec.register_implementation("s3", Bucket, clobber=True)
    from etils.epath import backend

    backend.fsspec_backend._get_filesystem.cache_clear()
    yield objects
    backend.fsspec_backend._get_filesystem.cache_clear()


def test_a_bucket_holds_the_same_bytes(bucket, whole):
    folder = "s3://bucket/runs/fcn_alex"
    results = open_results(folder, process=1, processes=2)
    add(results, [7, 3])
    put(results, [3])
    assert bucket.keys() == {
        f"bucket/runs/fcn_alex/{name}"
        for name in ("manifest.json", "images/000003.png", "images/000007.png")
        + ("perturbations/000003.safetensors", "perturbations/000007.safetensors")
        + ("timings/000003.json", "timings/000007.json", "scores/confusion/000003.safetensors")
    }
    assert rundir.read(folder).keys == [KEYS[3], KEYS[7]]
    results = open_results(folder)
    assert results.has("confusion", 3) and not results.has("confusion", 7)
    assert results.todo() == [0, 1, 2, 4, 5, 6, 8, 9]
    complete(results)
    assert results.is_complete("confusion") and results.records() == rundir.read(whole).records
    objects = {name.removeprefix("bucket/runs/fcn_alex/"): bucket[name] for name in bucket}
    shared = {name for name in objects if not name.startswith("timings")}
    assert {name: objects[name] for name in shared} == bytes_of(whole)
    run = rundir.read(folder)
    for index, key in enumerate(KEYS):
        np.testing.assert_array_equal(run.perturbation(key), attack_of(index)[1])
        np.testing.assert_array_equal(run.image(key), rundir.read(whole).image(key))
    with pytest.raises(UserError, match="other settings"):
        rundir.Results(folder, MANIFEST | {"margin": 3.0}, KEYS)
    with pytest.raises(UserError, match="not empty"):
        rundir.claim("s3://bucket/runs", {})


def test_an_image_made_anew_in_a_bucket_loses_its_old_scores(bucket, whole):
    complete(open_results("s3://bucket/run"))
    del bucket["bucket/run/perturbations/000006.safetensors"]
    results = open_results("s3://bucket/run")
    add(results, results.todo())
    assert "bucket/run/scores/confusion/000006.safetensors" not in bucket
    complete(results)
    assert bucket["bucket/run/" + SCORE] == bytes_of(whole)[SCORE]


@pytest.mark.parametrize("damage", [truncate, flip, flip_record, empty])
def test_damage_in_a_bucket_is_named(bucket, damage):
    add(open_results("s3://bucket/run"), [5, 6])
    name = f"bucket/run/{CHANGE}"
    bucket[name] = damage(bucket[name])
    with pytest.raises(UserError, match=f"s3://{name} is damaged .* Delete that file"):
        open_results("s3://bucket/run")


@pytest.mark.parametrize("error", [TimeoutError(), ConnectionResetError(104, "reset"), KeyError(5)])
@pytest.mark.parametrize("name", ["manifest.json", PNG, CHANGE])
def test_a_broken_connection_is_no_damage(bucket, name, error):
    add(open_results("s3://bucket/run"), [6])
    bucket[f"bucket/run/{name}"] = Broken(bucket[f"bucket/run/{name}"])
    bucket[f"bucket/run/{name}"].error = error  # KeyError: clients have errors of their own
    with pytest.raises(StorageError, match=f"s3://bucket/run/{name} cannot be read now") as caught:
        open_results("s3://bucket/run")
    assert "elete" not in str(caught.value)


def test_a_bucket_that_cannot_be_written(bucket, monkeypatch):
    results = open_results("s3://bucket/run")
    add(results, [0, 1])

    def refuse(path, data):
        raise RuntimeError("403: quota")  # a client's own exception

    monkeypatch.setattr(type(results.folder), "write_bytes", refuse)
    with pytest.raises(StorageError, match=r"s3://bucket/run/.* 403: quota\. 2 of the 10 images"):
        add(results, [2])


def test_a_bucket_that_nothing_can_open():
    if any(map(importlib.util.find_spec, ("gcsfs", "tensorflow"))):
        pytest.skip("gcsfs or TensorFlow is installed, and would go to the network")
    with pytest.raises(UserError, match="gs://bucket/run cannot be opened .* needs gcsfs"):
        rundir.claim("gs://bucket/run", {})
    with pytest.raises(UserError, match="ftp://bucket/run cannot be opened .* A bucket is gs://"):
        rundir.read("ftp://bucket/run")
