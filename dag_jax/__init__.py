"""Dense Adversary Generation (DAG) in JAX: adversarial examples for segmentation and detection."""

from dag_jax import detection, methods, metrics, networks
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

__version__ = "0.2.0"

__all__ = [
    "Attack",
    "DAG",
    "Failure",
    "Finding",
    "Method",
    "Objective",
    "State",
    "Status",
    "Targets",
    "UserError",
    "absent_labels",
    "active_targets",
    "attack",
    "attack_batch",
    "attack_stream",
    "audit",
    "check",
    "dag_update",
    "derangement",
    "detection",
    "image_key",
    "init",
    "label_proposals",
    "make_targets",
    "margin_loss",
    "methods",
    "metrics",
    "networks",
    "permute_labels",
    "perturb",
    "scale_by_max_norm",
    "step",
]
