"""Readers of annotations, lists, masks and photographs, with small files that they read."""

import contextlib
import io
import json
import struct
import zlib

import numpy as np
import scipy.io
from PIL import Image

from dag_jax.datasets import annotations, coco, folder, photographs
from dag_jax.datasets.devkit import Devkit
from dag_jax.errors import UserError
from tests.fuzz.children import Reader
from tests.fuzz.wrapping import of_file

_IMAGE = {"mebibytes": 1500, "seconds": 10}  # of the largest image that is read


def readers() -> list[Reader]:
    """Return those of datasets and of images."""
    return [*_datasets(), *_images()]


_XML = """<annotation><folder>VOC2007</folder><filename>000001.jpg</filename><size>
<width>353</width><height>500</height><depth>3</depth></size><segmented>0</segmented><object><name>dog</name>
<pose>Left</pose><truncated>1</truncated><difficult>0</difficult><bndbox><xmin>48</xmin>
<ymin>240</ymin><xmax>195</xmax><ymax>371</ymax></bndbox></object></annotation>"""
_HEAD = '<?xml version="1.0" encoding="utf-8"?><!DOCTYPE a [<!ENTITY b "dog">]>'


def _datasets():
    xml = [
        _XML.encode(),
        (_HEAD + _XML.replace("<name>dog", "<name>&b;")).encode(),
        _XML.encode("utf-16"),
    ]
    lists = [b"2007_000032\n2007_000039\n", b"\xef\xbb\xbf2007_000032 1\r\n2007_000039 -1\r\n"]
    lists += [b"/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png\n"]
    image = _png(np.zeros((32, 40, 3), np.uint8))
    mask = _png(np.zeros((32, 40), np.uint8))
    segmentation = np.zeros((20, 30), np.uint8)
    mats = [
        _mat({"Segmentation": segmentation, "Boundaries": np.zeros(3)}, compress)
        for compress in (False, True)
    ]
    content = {
        "images": [{"id": 4, "file_name": "4.png", "height": 32, "width": 40}],
        "categories": [{"id": 1, "name": "person"}, {"id": 7, "name": "train"}],
        "annotations": [
            {"id": 1, "image_id": 4, "category_id": 1, "bbox": [1, 2, 20, 10], "iscrowd": 0,
             "area": 200, "segmentation": [[1, 2, 21, 2, 21, 12, 1, 12]]},
            {"id": 2, "image_id": 4, "category_id": 7, "bbox": [0, 0, 9, 9], "iscrowd": 1,
             "area": 9, "segmentation": {"counts": [0, 9, 1271], "size": [32, 40]}},
        ],
    }  # fmt: skip

    def write(folder, **contents):
        for name, data in contents.items():
            path = folder / name.replace("__", ".").replace("_of_", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def read_coco(place, data):
        write(place, annotations_of_instances_val__json=data, val_of_4__png=image)
        list(coco.open_coco(place, "val"))

    def plain(place, **contents):
        write(
            place,
            images_of_a__png=image,
            masks_of_a__png=mask,
            classes__txt=b"sky\nroad\nsea\nvoid = 255",
        )
        write(place, val__txt=b"a\n")
        write(place, **contents)
        list(folder.open_plain_folder(place, "val"))

    def voc_list(place, data):
        write(place, VOC2012_of_ImageSets_of_Main_of_val__txt=data)
        Devkit(place).image_ids("VOC2012/ImageSets/Main/val.txt")

    return [
        Reader("xml", xml, of_file(annotations.read_objects)),
        Reader("voc list", lists, voc_list),
        Reader("plain list", [b"a\n", b"\xef\xbb\xbfa.png\r\n"], lambda p, d: plain(p, val__txt=d)),
        Reader("classes", [b"sky\nroad\nsea\nvoid = 255\n"], lambda p, d: plain(p, classes__txt=d)),
        Reader("coco", [json.dumps(content, indent=0).encode()], read_coco),
        Reader("mat", mats, of_file(lambda p: annotations.read_mask(p, (20, 30)), "a.mat")),
        Reader("plain mask", _masks(), lambda place, data: plain(place, masks_of_a__png=data),
               **_IMAGE),
    ]  # fmt: skip


def _mat(fields, compress):
    file = io.BytesIO()
    scipy.io.savemat(file, {"GTcls": fields}, do_compression=compress)
    return file.getvalue()


def _png(pixels, **options):
    return _saved(Image.fromarray(pixels), "PNG", **options)


def _saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _masks():
    indices = np.arange(32 * 40, dtype=np.uint8).reshape(32, 40) % 3
    palette = Image.fromarray(indices)
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    grey = Image.fromarray(indices)
    wide = Image.fromarray(indices.astype(np.uint16))
    return [
        _saved(palette, "PNG", transparency=0),
        _saved(palette, "PNG", bits=4),
        _saved(grey, "PNG"),
        _saved(wide, "PNG"),
        _saved(grey.convert("1"), "PNG"),
    ]


def _chunks(data):
    """Return a PNG's chunks with right checksums, whatever they hold."""
    parts, at = [data[:8]], 8
    while at + 12 <= len(data):
        size = min(int.from_bytes(data[at : at + 4], "big"), len(data) - at - 12)
        body = data[at + 4 : at + 8 + size]
        parts.append(len(body[4:]).to_bytes(4, "big") + body + struct.pack(">I", zlib.crc32(body)))
        at += 12 + size
    return b"".join(parts)


def _images():
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (32, 40, 3), np.uint8))
    exif = colours.getexif()
    exif[0x0112], exif[0x011A] = 6, 72.0
    images = [
        _saved(colours, kind, **options)
        for kind, options in [
            ("JPEG", {"exif": exif.tobytes()}), ("JPEG", {"progressive": True}), ("BMP", {}),
            ("GIF", {}), ("WEBP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}),
            ("PPM", {}), ("TGA", {}), ("PCX", {}), ("SGI", {}), ("JPEG2000", {}),
        ]
    ]  # fmt: skip
    images.append(_saved(colours.convert("CMYK"), "JPEG"))
    with contextlib.suppress(Exception):  # not every Pillow has it
        images.append(_saved(colours, "AVIF"))
    pngs = [*_masks(), _saved(colours.convert("RGBA"), "PNG"), _saved(colours, "PNG", exif=exif)]

    def all_three(path):
        errors = 0
        for read in (photographs.read_photograph, photographs.read_stored, _class_map):
            try:
                read(path)
            except UserError as error:
                last, errors = error, errors + 1
        if errors == 3:
            raise last

    return [
        Reader("photograph", images, of_file(photographs.read_photograph), **_IMAGE),
        Reader("stored image", images, of_file(photographs.read_stored), **_IMAGE),
        Reader("png", pngs, of_file(all_three), **_IMAGE),
        Reader("signed png", pngs, of_file(all_three), _chunks, **_IMAGE),
    ]


def _class_map(path):
    return photographs.read_class_map(path)
