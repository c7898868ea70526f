"""Dense Adversary Generation (DAG) in JAX: adversarial examples for segmentation and detection.

The engine is imported at once; what needs more packages (adapters, networks, datasets, runs,
report) when it is first named.
"""

import importlib

from dag_jax import detection, methods, metrics, models
from dag_jax.engine.algorithm import Attack, State, Status, init, perturb, step
from dag_jax.engine.audit import Finding, audit
from dag_jax.engine.checks import check
from dag_jax.engine.door import attack, attack_batch
from dag_jax.engine.feed import Failure
from dag_jax.engine.method import Method, dag_update, scale_by_max_norm
from dag_jax.engine.objective import DAG, Objective, active_targets, margin_loss
from dag_jax.engine.stream import attack_stream
from dag_jax.engine.targets import (
    Targets,
    absent_labels,
    derangement,
    image_key,
    label_proposals,
    make_targets,
    permute_labels,
)
from dag_jax.errors import UserError
from dag_jax.models import Candidates, Detector, Segmenter

__version__ = "0.2.0"

_PACKAGES = ("adapters", "datasets", "networks", "report", "runs")
_LAZY = {
    "attack_rounds": "dag_jax.runs.rounds",
    "detector_targets": "dag_jax.runs.targets",
}

__all__ = [
    "Attack",
    "Candidates",
    "DAG",
    "Detector",
    "Failure",
    "Finding",
    "Method",
    "Objective",
    "Segmenter",
    "State",
    "Status",
    "Targets",
    "UserError",
    "absent_labels",
    "active_targets",
    "adapters",
    "attack",
    "attack_batch",
    "attack_rounds",
    "attack_stream",
    "audit",
    "check",
    "dag_update",
    "datasets",
    "derangement",
    "detection",
    "detector_targets",
    "image_key",
    "init",
    "label_proposals",
    "make_targets",
    "margin_loss",
    "methods",
    "metrics",
    "models",
    "networks",
    "permute_labels",
    "perturb",
    "report",
    "runs",
    "scale_by_max_norm",
    "step",
]


def __getattr__(name):
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
