"""Plain folders of images, masks and boxes."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dag_jax.datasets import load_examples, open_dataset
from dag_jax.datasets.photographs import read_class_map
from dag_jax.errors import MissingError, StorageError

CLASSES = ("sky", "road", "lorry")
LINES = "sky\nroad\n\nlorry\nvoid = 255\n"
HEIGHT, WIDTH = 34, 36
XML = """<annotation><object><name>{name}</name><difficult>{difficult}</difficult>
<bndbox><xmin>{x0}</xmin><ymin>3</ymin><xmax>{x1}</xmax><ymax>20.5</ymax></bndbox></object></annotation>"""


def png(samples, bits, palette=b""):
    """Return a grey or palette PNG of samples of 1 to 16 bits, by nobody's encoder."""
    height, width = samples.shape
    shifts = np.arange(bits)[::-1]
    rows = ((samples[:, :, None] >> shifts) & 1).reshape(height, -1).astype(np.uint8)
    lines = b"".join(b"\0" + np.packbits(row).tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, bits, 3 if palette else 0, 0, 0, 0)
    chunks = [
        (b"IHDR", header),
        (b"PLTE", palette),
        (b"IDAT", zlib.compress(lines)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
        if data or kind != b"PLTE"
    )


def write(
    folder, stems=("a", "b c"), part="", mask=None, classes="sky\nroad\n\nlorry\nvoid = 255\n"
):
    rng = np.random.default_rng(0)
    for place in ("images", "masks"):
        (folder / place / part).mkdir(parents=True, exist_ok=True)
    (folder / "classes.txt").write_text(classes)
    for stem in stems:
        pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / part / f"{stem}.png")
        drawn = rng.choice([0, 1, 2, 255], (HEIGHT, WIDTH)) if mask is None else mask
        (folder / "masks" / part / f"{stem}.png").write_bytes(png(drawn, 8))
    return folder


def write_box(folder, stem, name="lorry", difficult=0, x0=2, x1=11):
    (folder / "annotations").mkdir(exist_ok=True)
    text = XML.format(name=name, difficult=difficult, x0=x0, x1=x1)
    (folder / "annotations" / f"{stem}.xml").write_text(text)


def open_folder(folder, split="all"):
    return open_dataset("folder", split, data_dir=folder)


def test_images_and_masks_are_those_of_the_files(tmp_path):
    write(tmp_path)
    (tmp_path / "images/._a.png").write_bytes(b"of another system")
    (tmp_path / "images/._val").mkdir()
    (tmp_path / "._train.txt").write_bytes(b"of another system")
    (tmp_path / "images/notes.md").write_text("no image")
    examples = load_examples("folder", "all", data_dir=tmp_path)
    assert examples.classes == CLASSES and examples.void == 255
    assert examples.ids == ["a", "b c"]
    for example in examples:
        with Image.open(tmp_path / "images" / f"{example['image_id']}.png") as image:
            np.testing.assert_array_equal(example["image"], np.array(image))
        with Image.open(tmp_path / "masks" / f"{example['image_id']}.png") as mask:
            np.testing.assert_array_equal(example["mask"][:, :, 0], np.array(mask))
        assert example["mask"].dtype == np.uint8 and example["has_mask"]
        assert example["objects"]["boxes"].shape == (0, 4)


@pytest.mark.parametrize(
    ("bits", "colours"),
    [(bits, colours) for bits in (1, 2, 4, 8, 16) for colours in (False, True)][:-1],
)
def test_samples_of_any_depth_are_classes(tmp_path, bits, colours):
    count = min(2**bits, 300)
    names = [f"class {index}" for index in range(count)]
    samples = np.random.default_rng(0).integers(0, count, (HEIGHT, WIDTH))
    palette = np.random.default_rng(1).bytes(3 * count) if colours else b""
    write(tmp_path, ("a",), classes="\n".join(names))
    path = tmp_path / "masks/a.png"
    path.write_bytes(png(samples, bits, palette))
    example = load_examples("folder", "all", data_dir=tmp_path)[0]
    np.testing.assert_array_equal(example["mask"][:, :, 0], samples)
    if not colours:
        drawing, _ = read_class_map(path, classes=names, void=None)
        np.testing.assert_array_equal(drawing, samples)


def test_splits_are_lists_and_subfolders(tmp_path):
    write(tmp_path)
    write(tmp_path, ("d",), part="val")
    (tmp_path / "train.txt").write_bytes("\ufeffb c.png\n\na\n".encode())
    assert [e["image_id"] for e in open_folder(tmp_path, "train")] == ["b c", "a"]
    assert [e["image_id"] for e in open_folder(tmp_path, "train[1:]")] == ["a"]
    assert [e["image_id"] for e in open_folder(tmp_path, "val")] == ["d"]
    assert [e["image_id"] for e in open_folder(tmp_path, "all")] == ["a", "b c"]
    with pytest.raises(ValueError, match="has no split test; it has all, train, val"):
        open_folder(tmp_path, "test")
    (tmp_path / "val.txt").write_text("d")
    with pytest.raises(ValueError, match="split val is both a list, .*val.txt, and a folder"):
        open_folder(tmp_path, "val")
    (tmp_path / "train.txt").write_text("a\nb c\na.png\n")
    with pytest.raises(ValueError, match="train.txt has 'a' twice"):
        open_folder(tmp_path, "train")
    (tmp_path / "train.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="train.txt is not in UTF-8"):
        open_folder(tmp_path, "train")
    (tmp_path / "train.txt").write_text("a\nz\n")
    with pytest.raises(ValueError, match="2 files of split train are missing, as .*images/z.jpg"):
        open_folder(tmp_path, "train")
    (tmp_path / "train.txt").write_text("\n")
    with pytest.raises(ValueError, match="split train has no image"):
        open_folder(tmp_path, "train")


def test_boxes_are_those_of_voc_with_the_folder_s_classes(tmp_path):
    write(tmp_path, ("a",))
    write_box(tmp_path, "a", difficult="true")
    example = load_examples("folder", "all", data_dir=tmp_path)[0]
    np.testing.assert_array_equal(example["objects"]["boxes"], [[1, 2, 10, 19.5]])
    assert example["objects"]["label"].tolist() == [2] and example["objects"]["difficult"].all()
    (tmp_path / "masks/a.png").unlink()
    (tmp_path / "masks").rmdir()
    example = load_examples("folder", "all", data_dir=tmp_path)[0]
    assert not example["has_mask"] and (example["mask"] == 255).all()


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ({"name": "dog"}, "unknown class 'dog'"),
        ({"x0": 12}, "box .12.0, 3.0, 11.0, 20.5. of 'lorry' must be finite, its least corner"),
        ({"x1": "nan"}, "must be finite"),
        ({"x1": "inf"}, "must be finite"),
        ({"x1": "wide"}, "could not convert"),
        ({"x0": 37, "x1": 40}, "outside of its 36 x 34 pixels"),
        ({"difficult": 2}, "difficult is '2', neither 0 nor 1"),
    ],
)
def test_boxes_that_cannot_be_are_refused(tmp_path, box, message):
    write(tmp_path, ("a",))
    write_box(tmp_path, "a", **box)
    with pytest.raises(ValueError, match=f"a.xml .*{message}"):
        open_folder(tmp_path)[0]


@pytest.mark.parametrize(
    "text",
    [
        "<Error><Code>AccessDenied</Code></Error>",
        '<annotation xmlns="http://example.org/voc"><object><name>lorry</name></object></annotation>',
        "<annotation><object><name>lorry</name></object></annotation>",
        "<annotation>",
        '<?xml version="1.0" encoding="none"?><annotation/>',
        "<annotation><objects><object><name>lorry</name></object></objects></annotation>",
        '<annotation><v:object xmlns:v="http://example.org/voc"/></annotation>',
        "<annotation><Object><name>lorry</name></Object></annotation>",
    ],
)
def test_what_is_no_annotation_is_no_image_without_objects(tmp_path, text):
    write(tmp_path, ("a",))
    write_box(tmp_path, "a")
    (tmp_path / "annotations/a.xml").write_text(text)
    with pytest.raises(ValueError, match="a.xml is not a whole VOC annotation"):
        open_folder(tmp_path)[0]


def test_masks_that_cannot_be_are_refused(tmp_path):
    write(tmp_path, ("a",), mask=np.full((HEIGHT, WIDTH), 3))
    path = tmp_path / "masks/a.png"
    with pytest.raises(ValueError, match=r"a.png holds \[3\], .* 3 classes .* not void \(255\)"):
        open_folder(tmp_path)[0]
    path.write_bytes(png(np.zeros((HEIGHT, WIDTH - 1), int), 4))
    with pytest.raises(ValueError, match=r"a.png is \(34, 35\), its image is \(34, 36\)"):
        open_folder(tmp_path)[0]
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    with pytest.raises(ValueError, match="a.png has mode RGB; a mask is a palette or grey PNG"):
        open_folder(tmp_path)[0]
    Image.new("L", (WIDTH, HEIGHT)).save(path, "JPEG")
    with pytest.raises(ValueError, match="a.png is a JPEG file; a mask is"):
        open_folder(tmp_path)[0]
    path.write_bytes(png(np.zeros((HEIGHT, WIDTH), int), 4)[:-40])
    with pytest.raises(ValueError, match=r"a.png \(32 bytes\) is no image"):
        open_folder(tmp_path)[0]
    path.unlink()
    with pytest.raises(ValueError, match="1 files of split all are missing, as .*masks/a.png"):
        open_folder(tmp_path)


def test_void_is_void_only_where_classes_txt_says_so(tmp_path):
    void = np.full((HEIGHT, WIDTH), 255)
    write(tmp_path, ("a",), mask=void, classes="sky\nroad")
    with pytest.raises(ValueError, match=r"holds \[255\], .* 2 classes .*a line `void = 255`"):
        open_folder(tmp_path)[0]
    write(tmp_path, ("a",), mask=void, classes="sky\nroad\nVoid=255")
    assert (load_examples("folder", "all", data_dir=tmp_path)[0]["mask"] == 255).all()
    write(tmp_path, ("a",), mask=void, classes="\n".join(map(str, range(365))))
    examples = load_examples("folder", "all", data_dir=tmp_path)
    assert examples.void is None and examples.classes[examples[0]["mask"][0, 0, 0]] == "255"


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("", "names no class"),
        ("sky\nroad\nsky", "has the class 'sky' twice"),
        ("sky\nvoid = 0", "void = 0 is the class 'sky', too"),
        ("sky\nvoid = -1", "'void = -1'; one line may say"),
        ("sky\nvoid = 255\nvoid = 254", "'void = 254'; one line may say"),
        ("sky\nvoid = " + "9" * 5000, "one line may say"),
    ],
)
def test_classes_that_cannot_be_are_refused(tmp_path, classes, message):
    with pytest.raises(ValueError, match=f"classes.txt:? .*{message}"):
        open_folder(write(tmp_path, classes=classes))


def test_what_is_no_such_folder_is_told_what_it_lacks(tmp_path):
    with pytest.raises(ValueError, match="folder needs data_dir: a folder with images/"):
        open_dataset("folder", "all")
    with pytest.raises(ValueError, match="has no folder images; a plain folder has images/"):
        open_folder(tmp_path)
    write(tmp_path, ("a",))
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images/a.jpg")
    with pytest.raises(ValueError, match="a.png and a.jpg have the same stem"):
        open_folder(tmp_path)
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(ValueError, match="classes.txt is missing: the names of the classes"):
        open_folder(tmp_path)
    write(tmp_path / "b", ("a",))
    (tmp_path / "b/masks").rename(tmp_path / "b/labels")
    with pytest.raises(ValueError, match="has neither masks nor annotations"):
        open_folder(tmp_path / "b")


def test_names_that_are_not_utf_8_are_read_and_become_text(tmp_path):
    write(tmp_path, ("a",))
    stem = os.fsdecode(b"caf\xe9")
    for path in (tmp_path / "images/a.png", tmp_path / "masks/a.png"):
        path.rename(path.with_name(f"{stem}.png"))
    assert load_examples("folder", "all", data_dir=tmp_path).ids == [r"caf\udce9"]


def test_what_cannot_be_read_now_is_not_called_damaged(tmp_path):
    write(tmp_path, ("a",))
    write_box(tmp_path, "a")
    examples = open_folder(tmp_path)
    (tmp_path / "annotations/a.xml").unlink()
    with pytest.raises(MissingError, match="a.xml: no such file"):
        examples[0]
    (tmp_path / "annotations/a.xml").mkdir()
    with pytest.raises(StorageError, match="a.xml cannot be read now"):
        examples[0]


def spoil(tmp_path):
    """Write six images of which the second and the fourth cannot be read."""
    write(tmp_path, "abcdef")
    data = (tmp_path / "images/b.png").read_bytes()
    (tmp_path / "images/b.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "masks/d.png").write_bytes(png(np.full((HEIGHT, WIDTH), 9), 8))


def test_every_bad_file_is_named_at_once(tmp_path):
    spoil(tmp_path)
    with pytest.raises(ValueError) as error:
        load_examples("folder", "all", data_dir=tmp_path)
    head, first, second = str(error.value).split("\n  ")
    assert head == (
        "2 images of folder all cannot be used; --skip_bad (skip_bad=True) goes on without them:"
    )
    assert "images/b.png (" in first and "truncated" in first
    assert "masks/d.png holds [9]" in second
    with pytest.raises(ValueError, match=r"1 images of folder .*\n.*b.png"):
        load_examples("folder", "all", data_dir=tmp_path, limit=2)


def test_bad_files_are_skipped_where_asked_and_counted(tmp_path):
    spoil(tmp_path)
    options = {"data_dir": tmp_path, "skip_bad": True}
    examples = load_examples("folder", "all", **options)
    assert examples.ids == list("acef") and len(examples.skipped) == 2
    assert examples.skipped[0].startswith("images/b.png (")
    assert examples[1:].skipped == examples.skipped
    limited = load_examples("folder", "all", limit=3, **options)
    assert limited.ids == list("ace") and len(limited.skipped) == 2
    named = load_examples("folder", "all", image_ids=["a", "b"], **options)
    assert named.ids == ["a"] and len(named.skipped) == 1
    assert load_examples("folder", "all", data_dir=tmp_path, image_ids=["a"]).skipped == ()
    with pytest.raises(ValueError, match="no example to use: 1 cannot be used, the first: .*b.png"):
        load_examples("folder", "all", image_ids=["b"], **options)


def test_sixteen_bit_photographs_are_scaled(tmp_path):
    write(tmp_path, ("a",))
    levels = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(int)
    (tmp_path / "images/a.png").write_bytes(png(levels, 16))
    image = open_folder(tmp_path)[0]["image"]
    np.testing.assert_allclose(image[:, :, 1], levels / 257, atol=0.51)


@pytest.mark.parametrize("name", ["a" * 5000, "a/" * 3000, "a\0b"])
def test_a_name_that_no_file_can_have_is_missing(tmp_path, name):
    write(tmp_path)
    (tmp_path / "val.txt").write_text(f"a\n{name}\n")
    with pytest.raises(ValueError, match="files of split val are missing, as ") as error:
        open_dataset("folder", "val", data_dir=tmp_path)
    assert len(str(error.value)) < 500
