"""Folders that last: what a kill, a full disk and damage leave, and what other code reads."""

import collections
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
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

import dag_jax
from dag_jax.runs import provenance, rundir

ROOT = pathlib.Path(__file__).resolve().parents[3]
MANIFEST = {"network": "fcn_alex", "weights_sha256": "ab", "margin": 0.0}
KEYS = [f"{number:06d}" for number in range(10)]  # shards of 4, 4 and 2
Attack = collections.namedtuple("Attack", "image perturbation")


def attack_of(index):
    rng = np.random.default_rng(index)
    image = rng.integers(0, 256, (4, 5, 3), np.uint8)
    return Attack(image, rng.normal(0, 9, image.shape).astype(np.float32))


def record_of(index):
    return {"status": "FOOLED", "num_steps": index, "counts": [9, index], "p": index / 7}


def open_results(folder, keys=KEYS, **options):
    return rundir.Results(folder, MANIFEST, keys, shard_size=4, **options)


def add(results, indices):
    for index in indices:
        results.add(index, attack_of(index), record_of(index), seconds=random.random())


def bytes_of(folder):
    """Return {name: bytes} of all that two runs agree on."""
    paths = [path for path in pathlib.Path(folder).rglob("*") if path.is_file()]
    names = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    return {name: data for name, data in names.items() if not name.startswith("timings")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished folder."""
    folder = tmp_path_factory.mktemp("whole") / "fcn_alex"
    results = open_results(folder)
    add(results, results.todo())
    results.finalise()
    return folder


def test_a_folder_belongs_to_one_run(tmp_path):
    settings = {"seed": 0, "splits": ("a", "b"), "versions": {"jax": "0.10"}, "text": "x" * 100}
    folder = rundir.claim(tmp_path / "run", settings)
    assert rundir.claim(folder, settings | {"splits": ["a", "b"]}) == folder
    before = bytes_of(tmp_path)
    other = settings | {"seed": 1, "margin": 3, "versions": {"jax": "0.12"}, "text": "y" * 100}
    with pytest.raises(ValueError) as error:
        rundir.claim(folder, other | {"splits": ["a"]})
    assert (
        "other settings (margin: now 3, there nothing; seed: now 1, there 0; splits.1: now "
        f'nothing, there "b"; text: now "{59 * "y"}, there "{59 * "x"}; versions.jax: now "0.12", '
        'there "0.10"); nothing was changed'
    ) in str(error.value)
    with pytest.raises(ValueError, match=r"4\.\d+.*; and 2 more\)"):
        rundir.claim(rundir.claim(tmp_path / "b", {"keys": [*range(7)]}), {"keys": [4.5] * 7})
    assert bytes_of(tmp_path).items() >= before.items()


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="not empty"):
        rundir.claim(tmp_path, {"seed": 0})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_manifest_is_named(tmp_path):
    folder = rundir.claim(tmp_path / "run", {"seed": 0})
    (tmp_path / "run" / "manifest.json").write_text('{"seed":')
    with pytest.raises(ValueError, match=r"manifest\.json is damaged .* Put it back"):
        rundir.claim(folder, {"seed": 0})


def test_a_manifest_cut_short_is_written_again(tmp_path):
    (tmp_path / "manifest.json.tmp-0123abcd").write_text("{")
    assert rundir.claim(tmp_path, {"seed": 0}).exists()
    assert json.loads((tmp_path / "manifest.json").read_text()) == {"seed": 0}


def test_write_replaces_whole_files(tmp_path):
    path = tmp_path / "table.md"
    rundir.write(path, "old")
    rundir.write(path, "new é")
    assert path.read_text(encoding="utf-8") == "new é"
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.md"]


def test_environment_says_what_runs_here():
    found = provenance.environment()
    assert found["versions"]["jax"] == jax.__version__
    assert found["versions"]["numpy"] == np.__version__
    assert found["versions"].keys() >= {"python", "jaxlib", "flax", "optax", "dag_jax"}
    assert found["device"] == jax.devices()[0].device_kind
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("seed", range(3))
def test_bytes_do_not_depend_on_the_order(whole, tmp_path, seed):
    order = list(range(len(KEYS)))
    random.Random(seed).shuffle(order)
    results = open_results(tmp_path / "run")
    add(results, order[:5])
    results = open_results(tmp_path / "run")
    assert results.todo() == sorted(order[5:])
    add(results, order[5:])
    assert results.todo() == []
    results.finalise()
    assert bytes_of(tmp_path / "run") == bytes_of(whole)
    results = open_results(tmp_path / "run")  # once more over what is finished
    assert results.todo() == []
    assert results.finalise() == rundir.read(whole).records
    assert bytes_of(tmp_path / "run") == bytes_of(whole)


def test_what_a_finished_folder_holds(whole):
    assert sorted(path.name for path in whole.iterdir()) == sorted(
        ["manifest.json", "records.jsonl", "timings.jsonl", "timings", "scores"]
        + ["perturbations", "parts", "images"]
    )
    shards = ["00000-of-00003", "00001-of-00003", "00002-of-00003"]
    assert sorted(path.stem for path in (whole / "perturbations").iterdir()) == shards
    assert not any((whole / "parts").iterdir())
    lines = [json.loads(line) for line in (whole / "records.jsonl").read_text().splitlines()]
    assert lines == [{"key": key} | record_of(i) for i, key in enumerate(KEYS)]
    assert "seconds" not in (whole / "records.jsonl").read_text()
    lines = [json.loads(line) for line in (whole / "timings.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == KEYS
    assert all(0 < line["seconds"] < 1 for line in lines)


def test_reader_on_a_finished_folder(whole):
    run = rundir.read(str(whole))
    assert run.keys == KEYS and run.manifest["network"] == "fcn_alex"
    assert run.manifest["units"]["margin"] == "logits"
    for index, key in enumerate(KEYS):
        image, perturbation = attack_of(index)
        assert run.records[index] == {"key": key} | record_of(index)
        np.testing.assert_array_equal(run.perturbation(key), perturbation, strict=True)
        saved = dag_jax.perturb(image.astype(np.float32), perturbation, rounded=True)
        np.testing.assert_array_equal(run.image(key), np.uint8(saved), strict=True)
        with Image.open(whole / "images" / f"{key}.png") as file:
            np.testing.assert_array_equal(np.asarray(file), run.image(key))
    with pytest.raises(ValueError, match="no image 'nothing'"):
        run.perturbation("nothing")


def test_reader_on_an_unfinished_folder(tmp_path):
    results = open_results(tmp_path / "run")
    add(results, [7, 1, 0, 3, 2])  # a shard and a part
    run = rundir.read(tmp_path / "run")
    assert run.keys == [KEYS[i] for i in (0, 1, 2, 3, 7)]
    assert [record["num_steps"] for record in run.records] == [0, 1, 2, 3, 7]
    for index in (2, 7):
        np.testing.assert_array_equal(run.perturbation(KEYS[index]), attack_of(index)[1])
        assert run.image(KEYS[index]).shape == (4, 5, 3)
    with pytest.raises(ValueError, match="5 of 10 images are not done"):
        open_results(tmp_path / "run").finalise()
    with pytest.raises(ValueError, match="no such file"):
        rundir.read(tmp_path)


def test_images_are_rounded_and_read_back_as_written(tmp_path):
    image = np.zeros((1, 4, 3), np.float32)
    image[0, :, 0] = 10, 11, 250, 3
    image[0, :, 1] = 0.25, 254.5, 255, 0.5
    change = np.zeros_like(image)
    change[0, :, 0] = 0.5, 0.5, 6, -3.5  # 10.5 and 11.5 go to the even number
    change[0, :, 2] = 1e9, -1e9, 1.4999999, 255.6
    results = rundir.Results(tmp_path / "run", {}, ["a"])
    results.add(0, Attack(image, change), {}, 0.0)
    expected = np.zeros((1, 4, 3), np.uint8)
    expected[0, :, 0] = 10, 12, 255, 0
    expected[0, :, 1] = 0, 254, 255, 0
    expected[0, :, 2] = 255, 0, 1, 255
    np.testing.assert_array_equal(rundir.read(tmp_path / "run").image("a"), expected, strict=True)
    np.testing.assert_array_equal(np.uint8(dag_jax.perturb(image, change, rounded=True)), expected)


def test_what_no_image_can_hold_is_refused(tmp_path):
    results = open_results(tmp_path / "run")
    image, change = attack_of(0)
    for value in (np.nan, np.inf):
        change[0, 0, 0] = value
        with pytest.raises(ValueError, match=r"'000000': .* not finite; nothing was written"):
            results.add(0, Attack(image, change), {}, 0.0)
    with pytest.raises(ValueError, match=r"image is \(4, 5, 3\), perturbation \(4, 5\)"):
        results.add(0, Attack(image, change[..., 0]), {}, 0.0)
    with pytest.raises(ValueError, match="JSON"):
        results.add(0, attack_of(0), {"p": float("nan")}, 0.0)
    with pytest.raises(ValueError, match="image 10 is of another process, or not of these"):
        results.add(10, attack_of(0), {}, 0.0)
    assert results.todo() == list(range(10))
    assert not any((tmp_path / "run" / "images").iterdir())


def test_any_character_in_a_key(tmp_path):
    keys = ["../up", "a/b", "ä ö", "%2F", "a.b.png", ".", "..", "a~", 'x"\n', "a.tmp-01234567"]
    results = open_results(tmp_path / "run", keys)
    add(results, range(9))
    results = open_results(tmp_path / "run", keys)
    add(results, results.todo())
    results.finalise()
    run = rundir.read(tmp_path / "run")
    assert run.keys == keys and [record["key"] for record in run.records] == keys
    for index, key in enumerate(keys):
        np.testing.assert_array_equal(run.perturbation(key), attack_of(index)[1])
        assert run.image(key).shape == (4, 5, 3)
    assert len(list((tmp_path / "run" / "images").iterdir())) == len(keys)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([], "there is no image"),
        (["a", "b", "a"], "2 images of the id 'a'"),
        (["a", ""], "name no file: ''"),
        (["ä" * 100], "name no file: 'ä"),
        (["__metadata__"], "name no file"),
    ],
)
def test_keys_that_cannot_be_are_named(tmp_path, keys, message):
    with pytest.raises(ValueError, match=message):
        open_results(tmp_path / "run", keys)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_other_settings_is_refused(whole):
    before = bytes_of(whole)
    with pytest.raises(ValueError, match=r"\(margin: now 3.0, there 0.0\)"):
        rundir.Results(whole, MANIFEST | {"margin": 3.0}, KEYS, shard_size=4)
    with pytest.raises(ValueError, match=r'\(keys.9: now nothing, there "000009"\)'):
        rundir.Results(whole, MANIFEST, KEYS[:9], shard_size=4)
    with pytest.raises(ValueError, match=r"\(shard_size: now 8, there 4\)"):
        rundir.Results(whole, MANIFEST, KEYS)
    assert bytes_of(whole) == before


def test_two_processes_share_a_folder(whole, tmp_path):
    first, second = (
        open_results(tmp_path / "run", process=process, processes=2) for process in range(2)
    )
    assert (list(first.shards()), list(second.shards())) == ([0, 2], [1])
    assert second.todo() == [4, 5, 6, 7] == list(second.indices(1))
    add(first, first.todo())
    add(second, [6])
    second.put("confusion", 1, {"counts": np.arange(6).reshape(2, 3).T, "flag": np.bool_(True)})
    with pytest.raises(ValueError, match="another process"):
        first.add(5, attack_of(5), record_of(5), 0.0)
    with pytest.raises(ValueError, match="3 of 10 .* not done, and of 1 that are, their process"):
        first.finalise()
    # What the second is writing is not the first's to tidy up.
    partial = tmp_path / "run" / "images" / "000005.png.tmp-0123abcd"
    partial.write_text("half")
    first = open_results(tmp_path / "run", process=0, processes=2)
    assert first.todo() == [] and partial.exists()
    alone = open_results(tmp_path / "run")  # goes on in one process
    assert alone.todo() == [4, 5, 7] and not partial.exists()
    add(alone, alone.todo())
    assert first.has("confusion", 1) and not first.has("confusion", 0)
    found = first.get("confusion", 1)
    np.testing.assert_array_equal(found["counts"], [[0, 3], [1, 4], [2, 5]])
    assert found["flag"].shape == () and found["flag"]
    with pytest.raises(ValueError, match="no such file"):
        first.get("confusion", 0)
    with pytest.raises(ValueError, match="can have no scores 'a-b' of shard 0"):
        first.put("a-b", 0, {})
    alone.finalise()
    (tmp_path / "run" / "scores" / "confusion-00001-of-00003.safetensors").unlink()
    assert bytes_of(tmp_path / "run") == bytes_of(whole)


def truncate(data):
    return data[: len(data) // 2]


def flip(data):
    return data[:-9] + bytes([data[-9] ^ 4]) + data[-8:]


def flip_record(data):
    place = data.index(b"FOOLED")
    return data[:place] + b"G" + data[place + 1 :]


def empty(data):
    return b""


SHARD, PART = "perturbations/00001-of-00003.safetensors", "parts/000009.safetensors"
PNG = "images/000006.png"


@pytest.mark.parametrize(
    ("name", "damage"),
    [(SHARD, d) for d in (truncate, flip, flip_record, empty)]
    + [(PART, d) for d in (truncate, flip, flip_record, empty)]
    + [(PNG, d) for d in (truncate, empty)],
)
def test_damage_is_named_and_made_good(whole, tmp_path, name, damage):
    folder = tmp_path / "run"
    add(open_results(folder), [0, 1, 2, 4, 5, 6, 7, 9])
    path = folder / name
    path.write_bytes(damage(path.read_bytes()))
    (folder / "images" / "000003.png.tmp-0123abcd").write_text("half")
    before = bytes_of(folder)
    with pytest.raises(ValueError) as error:
        open_results(folder)
    assert str(error.value).startswith(f"{path} is damaged (")
    assert "Nothing was changed. Delete that file: the same command" in str(error.value)
    assert bytes_of(folder) == before
    key = {SHARD: KEYS[7], PART: KEYS[9], PNG: KEYS[6]}[name]
    with pytest.raises(ValueError, match=re.escape(f"{path} is damaged")):
        run = rundir.read(folder)
        run.perturbation(key), run.image(key)
    path.unlink()
    results = open_results(folder)
    again = {SHARD: [4, 5, 6, 7], PART: [9], PNG: [6]}[name]
    assert results.todo() == sorted({3, 8, *again})
    add(results, results.todo())
    results.finalise()
    assert bytes_of(folder) == bytes_of(whole)


def test_a_pixel_that_another_program_changed_is_named(tmp_path):
    add(open_results(tmp_path / "run"), [0])
    path = tmp_path / "run" / "images" / "000000.png"
    with Image.open(path) as file:
        pixels = np.array(file)
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    with pytest.raises(ValueError, match=r"000000\.png is damaged \(its pixels"):
        open_results(tmp_path / "run")


def test_a_file_of_other_images_is_named(tmp_path):
    add(open_results(tmp_path / "run"), range(8))
    shards = tmp_path / "run" / "perturbations"
    (shards / "00000-of-00003.safetensors").replace(shards / "00001-of-00003.safetensors")
    for reader in (rundir.read, open_results):
        with pytest.raises(ValueError, match="00001-of-00003.safetensors"):
            reader(tmp_path / "run")


class Killed(BaseException):
    pass


@pytest.fixture
def die_at(monkeypatch):
    """Make the n-th and every later change of a file raise, as if there were no process."""
    real = {name: getattr(os, name) for name in ("replace", "remove", "fsync")}

    def install(moment):
        left = [moment]

        def dying(name):
            def call(*args, **kwargs):
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
                return real[name](*args, **kwargs)

            return call

        for name in real:
            monkeypatch.setattr(os, name, dying(name))

    def undo():
        for name, function in real.items():
            monkeypatch.setattr(os, name, function)

    return install, undo


def test_death_before_any_change_of_a_file(whole, tmp_path, die_at):
    install, undo = die_at
    keys, expected = KEYS[:5], None
    for moment in range(200):
        folder = tmp_path / f"run{moment}"
        install(moment)
        try:
            results = open_results(folder, keys)
            add(results, [3, 1, 0, 4, 2])
            results.finalise()
            died = False
        except Killed:
            died = True
        undo()
        results = open_results(folder, keys)
        add(results, results.todo())
        results.finalise()
        expected = expected or bytes_of(folder)
        assert bytes_of(folder) == expected, moment
        if not died:
            break
    assert moment > 30 and not died


def in_child(script, *arguments, prefix=()):
    """Start a script that has the functions above; it imports no JAX, so that it starts fast."""
    shared = "\n\n".join(map(inspect.getsource, (attack_of, record_of, open_results, add)))
    head = (
        "import collections, errno, json, os, pathlib, random, resource, shutil, subprocess, sys\n"
        "import time\n"
        "import numpy as np\n"
        "from experiments.runs import rundir\n"
        f"MANIFEST, KEYS = {MANIFEST!r}, {KEYS!r}\n"
        "Attack = collections.namedtuple('Attack', 'image perturbation')\n"
    )
    command = [*prefix, sys.executable, "-c", f"{head}{shared}\n{script}", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, **pipes)


SLOW_RUN = """
folder, seed, keys = sys.argv[1], int(sys.argv[2]), [str(number) for number in range(120)]
rng = random.Random(seed)
print("ready", flush=True)
results = open_results(folder, keys)
for index in results.todo():
    time.sleep(rng.uniform(0.005, 0.015))
    add(results, [index])
    print(index, flush=True)
results.finalise()
"""


def finish(child):
    """Return what a child printed."""
    stdout, stderr = child.communicate(timeout=120)
    assert child.returncode == 0, stderr
    return stdout


@pytest.mark.slow
def test_killed_at_ten_random_moments(tmp_path):
    rng = random.Random(0)
    finish(in_child(SLOW_RUN, tmp_path / "whole", 0))
    done = [0]
    for kill in range(10):
        with in_child(SLOW_RUN, tmp_path / "run", kill) as child:
            for _ in range(1 + rng.choice([0, 3, 6, 9])):  # with 0, while it is opened
                assert child.stdout.readline(), child.stderr.read()
            time.sleep(rng.uniform(0, 0.02))
            child.kill()
        assert child.returncode == -signal.SIGKILL, "it was done before it was killed"
        if (tmp_path / "run" / "manifest.json").exists():
            done.append(len(rundir.read(tmp_path / "run").keys))
    assert done == sorted(done) and len(set(done)) > 4 and done[-1] < 120, done
    finish(in_child(SLOW_RUN, tmp_path / "run", 10))
    assert bytes_of(tmp_path / "run") == bytes_of(tmp_path / "whole")


TROUBLE = """
trouble, folder, out = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3]

def mount(*options):
    subprocess.run(["mount", *options, str(folder)], check=True)

def begin():
    if trouble == "limited":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, resource.RLIM_INFINITY))
    elif trouble == "read-only":
        mount("-o", "remount,ro")

def end():
    if trouble == "limited":
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
    else:
        mount("-o", "remount,rw,size=1m")

if trouble != "limited":
    mount("-t", "tmpfs", "-o", "size=56k" if trouble == "full" else "size=1m", "none")
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
results = open_results(folder / "run")
todo = results.todo()
add(results, todo)
results.finalise()
shutil.copytree(folder / "run", out)
print(json.dumps([finished, error.errno, str(error), left, kept, todo]))
"""


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
    stdout = finish(in_child(TROUBLE, trouble, folder, tmp_path / "out", prefix=prefix))
    finished, found, message, left, kept, todo = json.loads(stdout)
    assert found == number and str(folder / "run") in message and reason in message
    # Where the shard was too much, its last image is kept in a part, though add() raised.
    assert set(kept) >= set(finished) and len(kept) - len(finished) == (trouble == "limited")
    assert f"{len(kept)} of the 10 images of this process are finished and kept; " in message
    assert left == [] and todo == sorted(set(range(10)) - set(kept))
    assert 2 <= len(kept) < 9 and bytes_of(tmp_path / "out") == bytes_of(whole)


def test_a_full_disk_at_any_write(whole, tmp_path, monkeypatch):
    fsync = os.fsync
    for moment in range(6, 27, 2):
        left = [moment]

        def full(file, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(file)

        folder = tmp_path / f"run{moment}"
        monkeypatch.setattr(os, "fsync", full)
        results = open_results(folder)
        with pytest.raises(OSError, match=r"cannot be written: No space left .* finished and kept"):
            add(results, results.todo())
            results.finalise()
        monkeypatch.setattr(os, "fsync", fsync)
        assert not list(folder.rglob("*.tmp-*"))
        add(results, results.todo())  # and the same object goes on
        open_results(folder).finalise()
        assert bytes_of(folder) == bytes_of(whole)


def test_a_folder_that_is_gone(tmp_path):
    results = open_results(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="its folder is gone") as error:
        add(results, [0])
    assert "kept" not in str(error.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file/run cannot be written: Not a directory"):
        rundir.claim(tmp_path / "file" / "run", {})


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

    class Bucket(fsspec.AbstractFileSystem):
        protocol, cachable = "s3", False

        def _open(self, path, mode="rb", **kwargs):
            if mode != "rb":
                file = Upload()
                file.name = path
                return file
            if path not in objects:
                raise FileNotFoundError(path)
            return io.BytesIO(objects[path])

        def ls(self, path, detail=True, **kwargs):
            path = self._strip_protocol(path).rstrip("/")
            found = {}
            for name in objects:
                if name == path:
                    found[name] = "file"
                elif name.startswith(path + "/"):
                    child, _, deeper = name[len(path) + 1 :].partition("/")
                    found[f"{path}/{child}"] = "directory" if deeper else "file"
            if not found:
                raise FileNotFoundError(path)
            rows = [
                {"name": n, "type": kind, "size": len(objects.get(n, b""))}
                for n, kind in found.items()
            ]
            return rows if detail else list(found)

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
    add(results, [6, 4])
    results.put("confusion", 1, {"counts": np.arange(3)})
    assert bucket.keys() == {
        f"bucket/runs/fcn_alex/{name}"
        for name in ("manifest.json", "images/000004.png", "images/000006.png")
        + ("parts/000004.safetensors", "parts/000006.safetensors")
        + ("scores/confusion-00001-of-00003.safetensors",)
    }
    np.testing.assert_array_equal(results.get("confusion", 1)["counts"], np.arange(3))
    run = rundir.read(folder)
    assert run.keys == [KEYS[4], KEYS[6]]
    results = open_results(folder)
    assert results.has("confusion", 1) and not results.has("confusion", 0)
    assert results.todo() == [0, 1, 2, 3, 5, 7, 8, 9]
    add(results, results.todo())
    results.finalise()
    found = {name.removeprefix("bucket/runs/fcn_alex/"): bucket[name] for name in bucket}
    left = {name for name in found if not name.startswith(("timings", "scores"))}
    assert {name: found[name] for name in left} == bytes_of(whole)
    run = rundir.read(folder)
    for index, key in enumerate(KEYS):
        np.testing.assert_array_equal(run.perturbation(key), attack_of(index).perturbation)
        np.testing.assert_array_equal(run.image(key), rundir.read(whole).image(key))
    with pytest.raises(ValueError, match="other settings"):
        open_results(folder, KEYS[:9])
    with pytest.raises(ValueError, match="not empty"):
        rundir.claim("s3://bucket/runs", {})


@pytest.mark.parametrize("damage", [truncate, flip, flip_record, empty])
def test_damage_in_a_bucket_is_named(bucket, damage):
    add(open_results("s3://bucket/run"), [0, 1, 2, 3])
    name = "bucket/run/perturbations/00000-of-00003.safetensors"
    bucket[name] = damage(bucket[name])
    with pytest.raises(ValueError, match=f"s3://{name} is damaged"):
        open_results("s3://bucket/run")


def test_a_bucket_that_cannot_be_written(bucket, monkeypatch):
    results = open_results("s3://bucket/run")
    add(results, [0, 1])

    def refuse(path, data):
        raise RuntimeError("403: quota")  # a client's own exception

    monkeypatch.setattr(type(results.folder), "write_bytes", refuse)
    with pytest.raises(OSError, match=r"s3://bucket/run/.* 403: quota\. 2 of the 10 images"):
        add(results, [2])


def test_a_bucket_that_nothing_can_open():
    if any(map(importlib.util.find_spec, ("gcsfs", "tensorflow"))):
        pytest.skip("gcsfs or TensorFlow is installed, and would go to the network")
    with pytest.raises(ValueError, match="gs://bucket/run cannot be opened .* needs gcsfs"):
        rundir.claim("gs://bucket/run", {})
    with pytest.raises(ValueError, match="ftp://bucket/run cannot be opened .* A bucket is gs://"):
        rundir.read("ftp://bucket/run")
