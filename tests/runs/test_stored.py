"""The perturbations that a table left, and the images that sums of them make."""

import shutil

import jax
import numpy as np
import pytest

from dag_jax import files, metrics, networks
from dag_jax.engine.targets import image_key
from dag_jax.errors import DamagedError
from dag_jax.runs import rundir
from dag_jax.runs.dataset import ROW
from dag_jax.runs.stored import SUMS, Source, Stored, default_sums, open_run

SUM = Source("val", ("fcn_vgg", "mine:first"))


@pytest.fixture
def store(windows):
    """Open a table's folder, with the images of the dataset that it names."""

    def open_(folder, examples=None, *, requests=None):
        def load(settings, split, ids):
            if requests is not None:
                requests.append((settings["dataset"], split, sorted(ids)))
            whole = windows(3) if examples is None else examples
            return whole.pick([row for row, key in enumerate(whole.ids) if key in ids])

        return Stored(folder, load)

    return open_


def test_rows_stand_in_the_table_s_order(make_table, windows, store):
    stored = store(make_table(windows(2)))
    assert list(stored.rows) == ["fcn_vgg", "mine:first", "mine:window"]
    assert list(stored.runs) == list(stored.splits) == list(stored.rows)
    assert stored.rows["mine:first"]["title"] == "MINE:FIRST"
    assert set(stored.splits.values()) == {"val"}


def test_a_row_beside_a_model_s_is_not_the_model_s(make_table, windows, store):
    folder = make_table(windows(1))
    shutil.copytree(folder / "fcn_vgg", folder / "fcn_vgg margin 0")
    row = {"row": "fcn_vgg margin 0", "network": "fcn_vgg", "title": "other"}
    files.write_json(folder / "fcn_vgg margin 0" / ROW, row)
    assert store(folder).rows["fcn_vgg"]["title"] == "FCN_VGG"


def test_sources_are_nothing_and_each_model_and_the_sums(make_table, windows, store):
    stored = store(make_table(windows(1)))
    sources = stored.sources([SUM.members])
    assert sources == [
        Source("val"),
        *(Source("val", (name,)) for name in stored.runs),
        SUM,
    ]
    assert [source.name for source in sources[:2]] == ["val none", "val fcn_vgg"]
    assert sources[-1]._replace(permuted=True).name == "val fcn_vgg+mine:first permuted"


def test_a_white_box_is_the_model_s_own(make_table, windows, store):
    assert SUM.is_white_box("fcn_vgg") and not SUM.is_white_box("mine:window")
    assert not SUM._replace(permuted=True).is_white_box("fcn_vgg")


def test_a_sum_that_cannot_be_made_is_named(make_table, windows, store):
    folder = make_table(windows(1), changes={"fcn_vgg": 1})
    make_table(windows(1), changes={"mine:first": 1}, split="test")
    stored = store(folder)
    assert stored.splits == {"fcn_vgg": "val", "mine:first": "test"}
    with pytest.raises(ValueError, match="has no row of a, b; it has rows of fcn_vgg, mine:first"):
        stored.sources([("fcn_vgg", "a", "b")])
    with pytest.raises(ValueError, match=r"no sum: .* splits \(fcn_vgg on val, mine:first on test"):
        stored.sources([SUM.members])
    assert [source.name for source in stored.sources([])][:2] == ["val none", "test none"]


def test_default_sums_are_those_that_can_be_made():
    splits = dict.fromkeys(networks.NAMES, "val")
    assert tuple(default_sums(splits)) == SUMS
    for name in networks.NAMES:
        splits[name] = str(name.startswith("fr_"))
    assert tuple(default_sums(splits)) == SUMS[:4]
    del splits["fcn_vgg"]
    assert ("fcn_alex", "fcn_vgg") not in default_sums(splits)


def test_images_are_those_that_were_attacked(make_table, windows, store):
    requests = []
    stored = store(make_table(windows(2)), requests=requests)
    assert stored.examples("val").ids == ["a", "b"]
    assert stored.examples("val") is stored.examples("val")  # read once
    assert requests == [("windows", "val", ["a", "b"])]


def test_a_sum_is_of_the_images_that_all_members_have(make_table, windows, store):
    make_table(windows(3), changes={"fcn_vgg": 1})
    stored = store(make_table(windows(2), changes={"mine:first": 1}))
    assert stored.keys(SUM) == stored.keys(Source("val", ("mine:first",))) == ["a", "b"]
    assert stored.keys(Source("val")) == stored.keys(Source("val", ("fcn_vgg",))) == ["a", "b", "c"]


def test_other_images_of_the_same_names_are_refused(make_table, windows, store):
    inverted = [example | {"image": 255 - example["image"]} for example in windows(2)]
    inverted_set = type(windows(1))(inverted, windows(1).classes)
    with pytest.raises(ValueError, match="was made of another image of the name 'a'"):
        store(make_table(windows(2)), inverted_set).examples("val")


def test_a_model_gets_the_images_of_a_source_that_it_can_be_scored_on(
    make_table, windows, store, looking
):
    examples = windows(3, without=("b",))
    make_table(examples, changes={"mine:window": 25})
    stored = store(make_table(windows(2, without=("b",)), changes={"fcn_vgg": 1}), examples)
    window, source = looking["mine:window"], Source("val")
    subject = stored.subject("mine:window", *window, source)
    assert subject.ids == ["a", "b", "c"] and subject.name == "mine:window"
    assert subject.weights_sha256 == "weights of mine:window"
    assert stored.subject("mine:window", *window, source) is subject
    fewer = stored.subject("mine:window", *window, Source("val", ("fcn_vgg",)))
    assert fewer.ids == ["a"]  # a segmenter was attacked there, and nobody segmented b
    assert stored.subject("fcn_vgg", *looking["fcn_vgg"], source).ids == ["a", "c"]


def test_the_image_of_a_sum_is_clean_plus_all_of_it(make_table, windows, store):
    stored = store(make_table(windows(1)))
    example = stored.examples("val")[0]
    clean = example["image"].astype(np.float32)
    np.testing.assert_array_equal(stored.image(Source("val"), example), clean)
    changes = [stored.runs[name].perturbation("a") for name in SUM.members]
    np.testing.assert_array_equal(stored.image(SUM, example), np.clip(clean + sum(changes), 0, 255))
    assert changes[0].min() == -50 and changes[1].max() == 50


def test_permutations_are_those_of_the_table(make_table, windows, store):
    stored = store(make_table(windows(1), seed=3))
    example, change = stored.examples("val")[0], stored.runs["fcn_vgg"].perturbation("a")
    shuffled = Source("val", ("fcn_vgg",), permuted=True)
    images = [stored.image(shuffled, example, shuffle) for shuffle in range(3)]
    for shuffle, image in enumerate(images):
        key = jax.random.fold_in(image_key(3, "a"), 1 + shuffle)
        expected = np.clip(example["image"] + np.asarray(metrics.permute(key, change)), 0, 255)
        np.testing.assert_array_equal(image, expected)
    assert len({image.tobytes() for image in images}) == 3


def test_a_fingerprint_is_of_all_that_makes_a_source(make_table, windows, store):
    examples = windows(2)
    stored = store(make_table(examples))
    known = stored.fingerprint(SUM)
    assert known == store(stored.folder).fingerprint(SUM)
    assert set(known["members"]) == set(SUM.members)
    changed_folders = {
        "settings": make_table(examples, folder="seed", seed=1),
        "images": make_table(windows(1), folder="fewer"),
        "members": make_table(examples, folder="weights", weights="other"),
    }
    for part, folder in changed_folders.items():
        assert store(folder).fingerprint(SUM)[part] != known[part]


def test_perturbations_that_are_not_there_are_named(make_table, windows, store, tmp_path):
    folder = make_table(windows(1))
    with pytest.raises(ValueError, match="--run is empty"):
        open_run("")
    with pytest.raises(ValueError, match="there is no folder .*/none; `python .*table1"):
        open_run(tmp_path / "none")
    with pytest.raises(ValueError, match=r"manifest.json is not a folder"):
        open_run(folder / "manifest.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="the folder .* is empty; .* with --split=seg11valid"):
        open_run(tmp_path / "empty")
    (tmp_path / "empty" / "something").mkdir()
    with pytest.raises(ValueError, match="is no folder of Table 1"):
        open_run(tmp_path / "empty")
    rundir.claim(tmp_path / "variants", {"launch": "variants"})
    with pytest.raises(ValueError, match="variants is no folder of Table 1"):
        open_run(tmp_path / "variants")
    rundir.claim(tmp_path / "started", {"launch": "table1", "settings": {}})
    with pytest.raises(ValueError, match="started has no row of Table 1"):
        store(tmp_path / "started")


def test_a_damaged_row_is_no_row(make_table, windows, store):
    folder = make_table(windows(1))
    path = folder / "mine%3Afirst" / ROW
    path.write_text(path.read_text().replace("MINE", "YOUR"))
    with pytest.raises(DamagedError, match="mine%3Afirst/row.json is damaged"):
        store(folder)


@pytest.mark.parametrize("content", [{}, {"row": "fcn_vgg"}, {"network": "fcn_vgg"}])
def test_a_row_that_says_too_little_is_damaged(make_table, windows, store, content):
    folder = make_table(windows(1))
    files.write_json(folder / "fcn_vgg" / ROW, content)
    with pytest.raises(DamagedError, match="fcn_vgg/row.json is damaged .it has no"):
        store(folder)


def test_a_manifest_that_says_too_little_is_damaged(make_table, windows, store, tmp_path):
    rundir.claim(tmp_path / "bare", {"launch": "table1"})
    with pytest.raises(DamagedError, match="manifest.json is damaged .it has no settings"):
        store(tmp_path / "bare")
    folder = make_table(windows(1))
    path = folder / "fcn_vgg" / rundir.MANIFEST
    content = files.load_json(path)
    del content["split"]
    files.write_json(path, content)
    with pytest.raises(DamagedError, match="fcn_vgg/manifest.json is damaged .it has no split"):
        store(folder)
