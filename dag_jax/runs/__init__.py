"""The run folder: what is attacked, scored and audited is written here, kept, read and exported.

```python
row = dag_jax.runs.attack_dataset(model, examples, method, "runs/mine")
run = dag_jax.runs.read("runs/mine")
```
"""

from dag_jax.runs.dataset import attack_dataset, paper_method
from dag_jax.runs.exporting import export
from dag_jax.runs.rundir import Run, read

__all__ = ["Run", "attack_dataset", "export", "paper_method", "read"]
