"""
Measurements for `evaluate`, which need no Hub.

```python
import evaluate
from sam_hf import measurements

sharpness = evaluate.load(measurements.path("sharpness"), module_type="measurement")
print(sharpness.compute(model=model, data=dataset, max_examples=128))
```
"""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent


def path(name: str) -> str:
    """
    Where a measurement of this package lies, for `evaluate.load`.

    Args:
        name (`str`): `"sharpness"`.

    Raises:
        ValueError: there is none of that name.
    """
    names = sorted(folder.name for folder in _FOLDER.iterdir() if (folder / f"{folder.name}.py").is_file())
    if name not in names:
        raise ValueError(f"name={name!r} is not allowed: it must be one of {', '.join(names)}.")
    return str(_FOLDER / name)
