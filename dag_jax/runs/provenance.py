"""What results depend on beside the settings of a launch."""

import hashlib
import pathlib
import platform
from importlib import metadata

import jax

import dag_jax


def environment() -> dict:
    """Return what results depend on beside the settings: versions and the kind of device."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy", "dag_jax")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"  # a checkout that is run in place
    versions["dag_jax"] += f", sources {_sources()}"
    device = jax.local_devices()[0]
    return {
        "versions": versions,
        "device": device.device_kind,
        "platform": device.platform,
        "matmul_precision": jax.config.jax_default_matmul_precision,
    }


def _sources() -> str:
    """Return the start of the SHA-256 of the package's code, which its version does not tell."""
    digest = hashlib.sha256()
    for path in sorted(pathlib.Path(dag_jax.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
