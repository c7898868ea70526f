"""Files for readers: written where they are looked for, and with digests that fit."""

import hashlib
import json
import pathlib
import tempfile

from dag_jax import files


def of_file(function, name="file"):
    """Return the function that writes contents to a file, which is given to another."""

    def read(folder, data):
        path = folder / name
        path.write_bytes(data)
        return function(path)

    return read


def written(write, *arguments):
    """Return what a function writes to a path."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "file"
        write(path, *arguments)
        return path.read_bytes()


def unsigned(data):
    """Return a safetensors file of ours as JSON, a line end, and its arrays."""
    size = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:size])
    header["__metadata__"] = json.loads(header["__metadata__"]["dag_jax"])
    return json.dumps(header).encode() + b"\n" + data[size:]


def signed(data):
    """Return the file again, with digests that fit."""
    text, _, arrays = data.partition(b"\n")
    header = json.loads(text)
    ours = header["__metadata__"]
    ours.pop("sha256", None)
    for name, tensor in header.items():
        if name != "__metadata__" and name in ours["arrays"]:
            begin, end = tensor["data_offsets"]
            kind = {"F": "float", "U": "uint", "I": "int"}[tensor["dtype"][0]] + tensor["dtype"][1:]
            line = f"{kind} {tuple(tensor['shape'])}\n".encode()
            ours["arrays"][name] = hashlib.sha256(line + arrays[begin:end]).hexdigest()
    ours["sha256"] = files.sha256(files.canonical_json(ours))
    header["__metadata__"] = {"dag_jax": json.dumps(ours)}
    head = json.dumps(header, separators=(",", ":")).encode()
    return len(head).to_bytes(8, "little") + head + arrays


def signed_json(data):
    content = json.loads(data)
    content.pop("sha256", None)
    digest = files.sha256(files.canonical_json(content, allow_nan=True))
    return json.dumps(content | {"sha256": digest}).encode()
