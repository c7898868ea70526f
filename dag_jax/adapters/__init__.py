"""Models of other frameworks as ours; no framework is imported before it is asked for.

```python
model = dag_jax.adapters.from_torch(module, mean=..., std=..., classes=names)
model = dag_jax.adapters.from_keras(model, mean=..., std=..., classes=names)
model = dag_jax.adapters.from_function(Partial(forward, parameters), classes=names)   # any JAX
model = dag_jax.adapters.from_queries(function, classes=names)   # a detector like DETR
```
"""

from dag_jax.adapters.functions import FunctionSegmenter, from_function
from dag_jax.adapters.keras import from_keras
from dag_jax.adapters.layers import with_fast_layers
from dag_jax.adapters.queries import (
    QueryDetector,
    SigmoidQueryDetector,
    from_queries,
    from_sigmoid_queries,
)
from dag_jax.adapters.torch import TorchFunction, from_torch

__all__ = [
    "FunctionSegmenter",
    "QueryDetector",
    "SigmoidQueryDetector",
    "TorchFunction",
    "from_function",
    "from_keras",
    "from_queries",
    "from_sigmoid_queries",
    "from_torch",
    "with_fast_layers",
]
