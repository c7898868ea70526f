import hashlib
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dag_jax.datasets import VOID_COLOUR, palette, photographs

# What a stored array is when shown upright, by EXIF orientation.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.fixture
def pixels(rng):
    return rng.integers(0, 256, (40, 56, 3)).astype(np.uint8)


def saved(path, image, **options):
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(path, **options)
    return path


def oriented(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(tmp_path, pixels, orientation, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"a.{suffix}", pixels, exif=oriented(orientation), **options)
    photograph = photographs.read_photograph(path)
    assert photograph.orientation == orientation
    np.testing.assert_array_equal(photograph.pixels, UPRIGHT[orientation](pixels))


def test_jpeg_is_what_pillow_decodes(tmp_path, pixels):
    path = saved(tmp_path / "a.jpg", pixels, exif=oriented(8))
    photograph = photographs.read_photograph(path)
    with Image.open(path) as image:
        np.testing.assert_array_equal(photograph.pixels, np.rot90(np.asarray(image)))
    assert photograph.name == "a.jpg"
    assert photograph.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert photograph.pixels.dtype == np.uint8


def test_an_orientation_that_is_none_is_upright(tmp_path, pixels):
    photograph = photographs.read_photograph(saved(tmp_path / "a.png", pixels, exif=oriented(9)))
    assert photograph.orientation == 1
    np.testing.assert_array_equal(photograph.pixels, pixels)


@pytest.mark.parametrize("suffix", ["png", "tiff", "jpg"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 7, 8])
def test_a_dataset_s_image_is_as_it_lies_in_the_file(tmp_path, pixels, orientation, suffix):
    turned = photographs.read_stored(
        saved(tmp_path / f"a.{suffix}", pixels, exif=oriented(orientation))
    )
    plain = photographs.read_stored(saved(tmp_path / f"b.{suffix}", pixels))
    np.testing.assert_array_equal(turned, plain)


def entry(tag, kind, count, value):
    return struct.pack("<HHI4s", tag, kind, count, value)


@pytest.mark.parametrize(
    ("second", "tail"),
    [
        (entry(282, 10, 1, struct.pack("<I", 38)), struct.pack("<ii", -1, 0)),  # -1/0 dpi
        (entry(259, 8, 1, struct.pack("<hxx", -5)), b""),  # no number of its kind
        (entry(270, 2, 5000, struct.pack("<I", 38)), b""),  # beyond the end
    ],
)
def test_exif_that_cannot_be_turns_the_image_where_it_says_how(tmp_path, pixels, second, tail):
    data = saved(tmp_path / "a.jpg", pixels).read_bytes()
    ifd = struct.pack("<H", 2) + entry(274, 3, 1, struct.pack("<Hxx", 6)) + second + bytes(4)
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + ifd + tail
    path = tmp_path / "b.jpg"
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:])
    photograph = photographs.read_photograph(path)
    assert photograph.orientation == 6
    upright = np.rot90(photographs.read_stored(tmp_path / "a.jpg"), -1)
    np.testing.assert_array_equal(photograph.pixels, upright)


def test_exif_that_is_none_leaves_the_image_as_it_is(tmp_path, pixels):
    path = saved(tmp_path / "a.png", pixels, exif=b"Exif\0\0no TIFF at all")
    photograph = photographs.read_photograph(path)
    assert photograph.orientation == 1
    np.testing.assert_array_equal(photograph.pixels, pixels)


def test_grey_has_three_equal_channels(tmp_path, pixels):
    grey = pixels[..., 0]
    read = photographs.read_photograph(saved(tmp_path / "a.png", grey)).pixels
    np.testing.assert_array_equal(read, np.repeat(grey[..., None], 3, axis=2))
    black_and_white = Image.fromarray(grey).point(lambda level: 255 * (level > 99)).convert("1")
    read = photographs.read_photograph(saved(tmp_path / "b.png", black_and_white)).pixels
    np.testing.assert_array_equal(read[..., 1], np.where(grey > 99, 255, 0))


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, rng, suffix):
    grey = rng.integers(0, 65536, (33, 50)).astype(np.uint16)
    grey[0, :3] = 0, 128, 65535
    read = photographs.read_photograph(saved(tmp_path / f"a.{suffix}", grey)).pixels
    assert read[0, :3, 0].tolist() == [0, 0, 255]
    np.testing.assert_array_equal(read[..., 2], np.round(grey.astype(float) / 257))


def test_transparency_shows_white(tmp_path, pixels, rng):
    alpha = rng.integers(0, 256, pixels.shape[:2]).astype(np.uint8)
    alpha[:2] = [[0], [255]]
    share = alpha[..., None] / 255
    read = photographs.read_photograph(saved(tmp_path / "a.png", np.dstack([pixels, alpha]))).pixels
    np.testing.assert_allclose(read, share * pixels + (1 - share) * 255, atol=1)
    assert (read[0] == 255).all() and (read[1] == pixels[1]).all()
    both = Image.fromarray(np.dstack([pixels[..., 0], alpha]), "LA")
    read = photographs.read_photograph(saved(tmp_path / "b.png", both)).pixels
    expected = share[..., 0] * pixels[..., 0] + (1 - share[..., 0]) * 255
    np.testing.assert_allclose(read[..., 0], expected, atol=1)


def test_palette_gives_its_colours(tmp_path):
    indices = np.arange(40 * 50).reshape(40, 50) % 7
    colours = np.arange(21, dtype=np.uint8).reshape(7, 3) * 12
    image = Image.fromarray(indices.astype(np.uint8), "P")
    image.putpalette(colours.tobytes())
    for name, options in (("a.png", {}), ("a.gif", {}), ("b.png", {"transparency": 2})):
        read = photographs.read_photograph(saved(tmp_path / name, image, **options)).pixels
        expected = colours.copy()
        if options:
            expected[2] = 255
        np.testing.assert_array_equal(read, expected[indices])


def test_cmyk_is_converted(tmp_path):
    ink = np.zeros((40, 40, 4), np.uint8)
    ink[:20, :, 0] = 255
    ink[20:, :, 3] = 255
    read = photographs.read_photograph(
        saved(tmp_path / "a.tiff", Image.fromarray(ink, "CMYK"))
    ).pixels
    assert read[0, 0].tolist() == [0, 255, 255] and read[-1, 0].tolist() == [0, 0, 0]
    read = photographs.read_photograph(
        saved(tmp_path / "a.jpg", Image.fromarray(ink, "CMYK"), quality=95)
    ).pixels
    np.testing.assert_allclose(read[[2, -3], 9], [[0, 255, 255], [0, 0, 0]], atol=6)


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert photographs.read_photograph(tmp_path / "a.gif").pixels[5, 5].tolist() == [255, 0, 0]


def test_what_cannot_be_read_is_named(tmp_path, pixels):
    with pytest.raises(ValueError, match=r"none\.jpg: no such image file"):
        photographs.read_photograph(tmp_path / "none.jpg")
    with pytest.raises(ValueError, match="no such image file"):
        photographs.read_photograph(tmp_path)
    (tmp_path / "text.jpg").write_text("a letter")
    with pytest.raises(ValueError, match=r"text\.jpg \(8 bytes\) is no image"):
        photographs.read_photograph(tmp_path / "text.jpg")
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(ValueError, match="no image"):
        photographs.read_photograph(tmp_path / "empty.jpg")
    for name in ("cut.jpg", "cut.png", "cut.gif"):
        path = saved(tmp_path / name, pixels)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ValueError, match=f"{name}.*truncated"):
            photographs.read_photograph(path)
    path = saved(tmp_path / "floats.tiff", pixels[..., 0] / np.float32(255))
    with pytest.raises(ValueError, match="grey levels from"):
        photographs.read_photograph(path)
    with pytest.raises(ValueError, match="56 x 31 pixels; a network needs at least 32"):
        photographs.read_photograph(saved(tmp_path / "small.png", pixels[:31]))


def test_grey_of_32_bits_has_no_white(tmp_path, pixels):
    grey = pixels[..., 0].astype(np.int32)
    for levels in (grey, 200 * grey):
        path = saved(tmp_path / "a.tiff", levels)
        for read in (photographs.read_photograph, photographs.read_stored):
            with pytest.raises(ValueError, match=r"a.tiff has grey levels from .* of 32 bits: whi"):
                read(path)


@pytest.mark.parametrize("sides", [(2**13, 2**13 + 1), (2**14, 2**13), (2**15, 2**15)])
def test_images_of_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, pixels, sides):
    data = bytearray(saved(tmp_path / "a.png", pixels).read_bytes())
    data[16:24] = struct.pack(">II", *sides)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "a.png").write_bytes(data)
    readers = photographs.read_photograph, photographs.read_stored, photographs.read_indices
    for read in (*readers, photographs.read_class_map):
        with pytest.raises(ValueError, match=r"a.png .* has more than 67,108,864 pixels"):
            read(tmp_path / "a.png")


def test_a_name_that_is_not_utf_8_is_one_that_can_be_printed(tmp_path, pixels):
    path = saved(tmp_path / "a.png", pixels)
    path = path.rename(path.with_name(os.fsdecode(b"caf\xe9.png")))
    assert photographs.read_photograph(path).name == r"caf\udce9.png"


def test_transparency_is_no_class(tmp_path, rng):
    classes = rng.integers(0, 21, (40, 50)).astype(np.uint8)
    image = Image.fromarray(classes, "P")
    image.putpalette(palette(256).tobytes())
    path = saved(tmp_path / "a.png", image, transparency=0)
    np.testing.assert_array_equal(photographs.read_class_map(path)[0], classes)
    np.testing.assert_array_equal(photographs.read_indices(path), classes)
    clear = np.dstack([palette(256)[classes], np.uint8(255) * (classes > 0)])
    path = saved(tmp_path / "b.png", clear)
    np.testing.assert_array_equal(photographs.read_class_map(path)[0], classes)


def test_a_grey_drawing_is_a_png(tmp_path):
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5 40 40 15 " + bytes(1600))  # which Pillow stretches from 15 to 255
    with pytest.raises(ValueError, match=r"a.pgm is a grey PPM file; class indices are a PNG's"):
        photographs.read_class_map(path)


def test_class_map_as_indices_and_as_colours(tmp_path, rng):
    classes = rng.integers(0, 21, (40, 50)).astype(np.uint8)
    classes[3:9] = 255
    colours = palette(256)
    image = Image.fromarray(classes, "P")
    image.putpalette(colours.tobytes())
    for name, drawn in (("p.png", image), ("l.png", classes), ("rgb.png", colours[classes])):
        path = saved(tmp_path / name, drawn)
        read, sha256 = photographs.read_class_map(path)
        assert read.dtype == np.int32
        np.testing.assert_array_equal(read, classes)
        assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_class_map_of_unknown_classes_is_refused(tmp_path):
    grey = np.zeros((40, 50), np.uint8)
    grey[7, 5:9] = 21
    with pytest.raises(ValueError, match=r"4 pixel\(s\) of no class, the first 21 at column 5, ro"):
        photographs.read_class_map(saved(tmp_path / "l.png", grey))
    colours = palette(256)[np.zeros((40, 50), int)]
    colours[7, 5] = 1, 2, 3
    with pytest.raises(ValueError, match=r"1 pixel\(s\) of no class, the first \[1, 2, 3\] at"):
        photographs.read_class_map(saved(tmp_path / "rgb.png", colours))
    colours[7, 5] = palette(256)[30]
    with pytest.raises(ValueError, match="of no class"):
        photographs.read_class_map(saved(tmp_path / "rgb.png", colours))


def test_class_map_of_other_classes_and_another_void(tmp_path):
    classes, seven = np.array([[0, 6], [99, 3]]).repeat(20, 0), tuple("abcdefg")
    colours = np.where((classes == 99)[..., None], VOID_COLOUR, palette(100)[classes])
    for drawn in (classes, colours):
        path = saved(tmp_path / "a.png", drawn.astype(np.uint8))
        read, _ = photographs.read_class_map(path, classes=seven, void=99)
        np.testing.assert_array_equal(read, classes)
        with pytest.raises(ValueError, match=r"of no class.* indices, 0 to 6, any other"):
            photographs.read_class_map(path, classes=seven, void=None)
        with pytest.raises(ValueError, match=r"of no class.* 0 to 2 and 99 for void"):
            photographs.read_class_map(path, classes=seven[:3], void=99)


def test_class_map_of_more_classes_than_a_byte_holds(tmp_path):
    classes = np.arange(300, dtype=np.uint16).reshape(15, 20)
    names = [f"class {index}" for index in range(300)]
    for drawn in (classes, palette(300)[classes]):
        path = saved(tmp_path / "a.png", drawn)
        read, _ = photographs.read_class_map(path, classes=names, void=None)
        np.testing.assert_array_equal(read, classes)
