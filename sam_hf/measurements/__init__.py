"""
Measurements for `evaluate` that work without the Hub.

```python
import evaluate
from sam_hf import measurements

sharpness = evaluate.load(measurements.path("sharpness"), module_type="measurement")
print(sharpness.compute(model=model, data=dataset, max_examples=128))
```
"""

from __future__ import annotations

from pathlib import Path


def path(name: str) -> str:
    """
    Return the file of a measurement of this package, for `evaluate.load`.

    Args:
        name (`str`): `"sharpness"`.

    Raises:
        ValueError: there is no measurement of that name.
    """
    if name != "sharpness":
        raise ValueError(f"name={name!r} is not allowed: it must be 'sharpness'.")
    return str(Path(__file__).with_name("sharpness.py"))
