"""What people look at: pictures, tables, plots and the page of a run.

```python
page = dag_jax.report.write("runs/mine")  # report.html, which opens from disk
```
"""

from dag_jax.report.html import write

__all__ = ["write"]
