"""Dense Adversary Generation (DAG) in JAX: adversarial examples for segmentation and detection."""

from dag_jax import detection, metrics, networks, variants
from dag_jax.attack import (
    Attack,
    State,
    Status,
    attack,
    dag_update,
    init,
    perturb,
    scale_by_max_norm,
    step,
)
from dag_jax.audit import Finding, audit
from dag_jax.checks import check, check_numbers
from dag_jax.feed import Failure
from dag_jax.objective import DAG, Objective, active_targets, margin_loss
from dag_jax.stream import attack_stream
from dag_jax.targets import (
    Targets,
    absent_labels,
    derangement,
    image_key,
    label_proposals,
    make_targets,
    permute_labels,
)

__all__ = [
    "Attack",
    "DAG",
    "Failure",
    "Finding",
    "Objective",
    "State",
    "Status",
    "Targets",
    "absent_labels",
    "active_targets",
    "attack",
    "attack_stream",
    "audit",
    "check",
    "check_numbers",
    "dag_update",
    "derangement",
    "detection",
    "image_key",
    "init",
    "label_proposals",
    "make_targets",
    "margin_loss",
    "metrics",
    "networks",
    "permute_labels",
    "perturb",
    "scale_by_max_norm",
    "step",
    "variants",
]
