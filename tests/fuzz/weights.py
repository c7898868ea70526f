"""Readers of weights, archives and a server's answers, with small files that they read."""

import contextlib
import functools
import gzip
import json
import math
import os
import socket
import threading

import numpy as np

from dag_jax import archives, files
from dag_jax.datasets.archives import read_archive
from dag_jax.errors import UserError
from dag_jax.networks import backbones, conversion
from dag_jax.networks.fcn import Fcn
from dag_jax.weights import caffe, convert, darknet, darknet_cfg, downloads, store, torch
from tests import test_archives
from tests.fuzz.children import Reader
from tests.fuzz.wrapping import of_file, signed, unsigned, written
from tests.weights import test_caffe, test_convert, test_darknet, test_torch

_CFG = darknet_cfg.parse(test_darknet.TEXT)


def readers() -> list[Reader]:
    """Return those of weights, archives and answers."""
    return [*_weights(), *_checkpoints(), *_archives(), *_http()]


def _weights():
    caffemodels = [
        test_caffe.network(form, **options)
        for form in test_caffe.FORMS
        for options in ({}, {"legacy": True}, {"packed": False}, {"double": True})
    ]
    state, _ = test_torch.small_checkpoint()
    zips = [written(test_torch.write_zip, state, protocol) for protocol in (2, 4)]
    legacy = [written(test_torch.write_legacy, state, protocol) for protocol in (2, 3)]
    records = test_torch.zip_records(state, 2)
    pickles = [test_torch.zip_records(state, n)["archive/data.pkl"] for n in (2, 4)]

    def around(text):
        return written(test_torch.write_records, records | {"archive/data.pkl": text})

    drawn = test_darknet.draw(_CFG, np.random.default_rng(0))
    cfgs = [test_darknet.TEXT.encode()] + [
        test_darknet.TEXT.replace("[yolo]", f"{section}\n[yolo]").encode()
        for section in (
            "[convolutional]\nfilters=14\nactivation=mish",
            "[shortcut]\nfrom=-1",
            "[maxpool]\nsize=2\nstride=2",
        )
    ]
    weights = [written(test_darknet.write, drawn, head) for head in ((0, 1, 0), (0, 2, 5))]
    torch_read, caffe_read = of_file(torch.read), of_file(caffe.layers)
    return [
        Reader("caffe", caffemodels, caffe_read),
        Reader("torch zip", zips, torch_read),
        Reader("torch pickle", pickles, torch_read, around),
        Reader("torch legacy", legacy, torch_read),
        Reader("any weights", [*caffemodels, *zips, *legacy], of_file(conversion.read)),
        Reader("cfg", cfgs, of_file(lambda p: darknet_cfg.parse(darknet_cfg.read_cfg(p), "cfg"))),
        Reader("darknet", weights, of_file(lambda p: darknet.fold(darknet.read(p, _CFG)))),
        *_conversions(),
    ]


def _conversions():
    """Dicts of arrays, written as a line for each: a name, a shape."""
    module = Fcn(backbones.Vgg16((2, 2, 2, 2, 2), first_padding=100), fc_width=2)
    rng = np.random.default_rng(0)
    tree = test_convert.random_tree(module, rng)
    convert._expected(module)  # here, as children use no JAX
    state = test_convert.torchvision_vgg16(tree)
    lines = {f"state_dict.{name}": leaf.shape for name, leaf in state.items()}
    lines |= {"optimizer.0.step": (), "best": ()}
    norms = {
        f"backbone.layer{stage}.{block}.{part}.{kind}": (4,)
        for stage in (1, 4)
        for block in (0, 1)
        for part in ("bn1", "bn2", "downsample.1")
        for kind in ("weight", "bias", "running_mean", "running_var")
    }
    norms |= {
        f"backbone.layer{stage}.{block}.{part}.weight": (4, 4, 1, 1)
        for stage in (1, 4)
        for block in (0, 1)
        for part in ("conv1", "conv2", "downsample.0")
    }
    blobs = {"conv1": [(4, 3, 1, 1)], "bn_conv1": [(4,), (4,), (1,)], "scale_conv1": [(4,), (4,)]}
    blobs |= {"rfcn_cls": [(4, 4, 1, 1), (4,)], "upscore": [(21, 21, 64, 64)]}
    seeds = [json.dumps(source, indent=0).encode() for source in (lines, norms, blobs)]

    def read(_, data):
        source = {}
        try:
            for name, shapes in json.loads(data).items():
                blobs = isinstance(shapes, list) and shapes and isinstance(shapes[0], list)
                shapes = shapes if blobs else [shapes]
                if max(map(math.prod, shapes)) > 1 << 20:  # no file of this size has as many
                    raise ValueError
                arrays = [np.ones(shape, np.float32) for shape in shapes]
                source[name] = arrays if blobs else arrays[0]
        except (ValueError, TypeError, AttributeError, RecursionError, MemoryError) as error:
            raise UserError("no arrays") from error
        convert.convert(module, [source])

    return [Reader("conversion", seeds, read, lines=200)]


def _checkpoints():
    """Safetensors of ours as they are, and of which the header is changed and signed again."""
    parameters = {"conv1": {"kernel": np.ones((3, 2), np.float32), "bias": np.zeros(2, np.float32)}}
    record = {"network": "fcn_alex", "dense": ["upscore"], "sources": [{"name": "a", "bytes": 3}]}
    whole = [written(store.save, parameters, record)]
    whole += [written(functools.partial(store.save, half=True), parameters, record)]
    module = Fcn(backbones.Vgg16((2, 2, 2, 2, 2), first_padding=100), fc_width=2)

    def load(path):
        conversion.read_network("fcn_vgg", module, path)

    return [
        Reader("checkpoint", whole, of_file(load)),
        Reader("signed checkpoint", list(map(unsigned, whole)), of_file(load), signed),
        Reader("listing", whole, of_file(lambda path: conversion.list_files([path])), lines=3),
    ]


def _archives():
    whole = list(test_archives.KINDS.values())
    tars, zips = [test_archives.KINDS["w"]], [whole[0], whole[1]]

    def read(path):
        for entry in archives.entries(path):
            for _ in entry.pieces():
                pass

    def located(path):
        for member in read_archive(path, lambda name: name).values():
            member.read_bytes()

    def unpack(path):
        downloads.unpack(path, {"1": None, "b": None}, path.parent / "out")

    return [
        Reader("archive", whole, of_file(read)),
        Reader("zip", zips, of_file(read)),
        Reader("tar", tars, of_file(located)),
        Reader("tgz", tars, of_file(located), functools.partial(gzip.compress, compresslevel=1)),
        Reader("unpacking", [*whole, *zips], of_file(unpack)),
    ]


_ANSWER = b"""HTTP/1.1 %s\r\nETag: "ab"\r\nContent-Type: application/octet-stream\r\n%s\r\n\r\n%s"""
_BODY = b"0123456789" * 20


def _http():
    answers = [
        _ANSWER % (b"200 OK", b"Content-Length: 200", _BODY),
        _ANSWER % (b"206 Partial Content", b"Content-Range: bytes 50-199/200", _BODY[50:]),
        _ANSWER % (b"200 OK", b"Transfer-Encoding: chunked", b"c8\r\n" + _BODY + b"\r\n0\r\n\r\n"),
        _ANSWER % (b"302 Found", b"Location: /b", b""),
        _ANSWER % (b"416 Range Not Satisfiable", b"Content-Length: 0", b""),
        _ANSWER % (b"200 OK", b"Content-Encoding: gzip", b"<!doctype html><html>sign in</html>"),
    ]
    reader = Reader("http", answers, _download, errors=(UserError, OSError), seconds=5, lines=3)
    return [reader]


@functools.cache
def _server():
    """Return (address, [answer]) of a server of this process, which answers for all hosts."""
    server, answer = socket.create_server(("127.0.0.1", 0)), [b""]

    def serve():
        while True:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(1 << 16)
                connection.sendall(answer[0])

    threading.Thread(target=serve, daemon=True).start()
    address = f"http://127.0.0.1:{server.getsockname()[1]}"
    os.environ |= {"http_proxy": address, "https_proxy": address, "no_proxy": ""}
    return address, answer


def _download(folder, data):
    """Go on with a download of which a quarter is there; every request is answered so."""
    address, answer = _server()
    answer[0] = data
    (folder / "a.part").write_bytes(_BODY[:50])
    note = {"address": f"{address}/a", "version": '"ab"', "total": 200}
    files.write_json(folder / "a.part.json", note)
    try:
        downloads.download(f"{address}/a", folder / "a")
    finally:
        for name in ("a", "a.part", "a.part.json"):
            (folder / name).unlink(missing_ok=True)
