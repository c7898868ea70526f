"""Descriptions of files and folders that no reader here takes, by first bytes and names."""

import re
import zipfile

_SAVE = "load it where it was written, and torch.save(model.state_dict(), path)"
# By a name that lies in a folder: what the folder is, and what to do.
_FOLDERS = {
    "config.json": ("a Hugging Face folder", "load the model with transformers or diffusers, and "
                    "torch.save(model.state_dict(), path)"),
    "saved_model.pb": ("a SavedModel of TensorFlow", "dag_jax.adapters takes models of PyTorch, "
                       "Keras and JAX"),
}  # fmt: skip
# By the first bytes of a file: the same.
_HEADS = {
    b"\x89HDF": ("an HDF5 file, as Keras and Caffe's .caffemodel.h5 are",
                 "let Caffe write a .caffemodel, or dag_jax.adapters.from_keras take the model"),
    b"GGUF": ("a GGUF file", _SAVE),
    b"\x1f\x8b": ("compressed with gzip", "decompress it"),
    b"BZh": ("compressed with bzip2", "decompress it"),
    b"\xfd7zXZ": ("compressed with xz", "decompress it"),
    b"\x93NUMPY": ("an array of NumPy's", _SAVE),
}  # fmt: skip
# ModelProto: its version, a small number; then who wrote it, or the graph. A solver's state of
# Caffe, which is like it, has the name of a .caffemodel in that place.
_ONNX = re.compile(rb"\x08[\x01-\x1f](?:\x12[\x03-\x3f](?!.*caffemodel)[\w.-]{3}|\x3a)", re.S)


def description(path) -> str:
    """Return what a file or folder is and what to do with it; '' where that is not known.

    Args:
      path: of the file or folder, an `epath.Path` or a `pathlib.Path`.
    """
    kind = _folder(path) if path.is_dir() else _file(path)
    return f"{kind[0]}, which is not read here; {kind[1]}" if kind else ""


def _folder(path):
    names = {entry.name for entry in path.iterdir()}
    return next((kind for name, kind in _FOLDERS.items() if name in names), None)


def _file(path):
    with path.open("rb") as file:
        head = file.read(64)
        if head.startswith(b"PK"):
            return _archive(file)
    if kind := next((kind for start, kind in _HEADS.items() if head.startswith(start)), None):
        return kind
    if _ONNX.match(head):
        return "an ONNX model", _SAVE
    if head[4:8] == b"TFL3":
        return "a model of TensorFlow Lite", "use the model that it was made of"
    if head[8:10] == b'{"' and b'{"__metadata__":{"dag_jax"' not in head:
        return "a safetensors file of another program", _SAVE
    return None


def _archive(file):
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except Exception:  # which differ by what is damaged; then it is no whole archive of any kind
        return None
    if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
        return "a TorchScript archive (torch.jit.save)", (
            "torch.jit.load it, and torch.save(model.state_dict(), path)"
        )
    if any(name.endswith(".npy") for name in names):
        return "an archive of NumPy's (.npz)", _SAVE
    if "metadata.json" in names and any(name.endswith(".h5") for name in names):
        return "a model of Keras", "let dag_jax.adapters.from_keras take it"
    return None
