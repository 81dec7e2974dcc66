"""
Sharpness of any model, dataloader and loss, as arrays: curvature, neighbourhood, landscape.

```python
from sam_hf.sharpness import LossOracle, hessian_eigenvalues, m_sharpness

oracle = LossOracle.from_trainer(trainer, max_examples=256)
print(hessian_eigenvalues(oracle, k=5).values, m_sharpness(oracle, rho=0.05, m=32).mean)
```
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

# Public name -> module, imported on first use
_PUBLIC = {
    "LossOracle": "oracle",
    "Eigenvalues": "hessian",
    "Trace": "hessian",
    "hessian_eigenvalues": "hessian",
    "hessian_trace": "hessian",
    "SpectralDensity": "density",
    "hessian_spectral_density": "density",
    "Sharpness": "neighborhood",
    "adaptive_sharpness": "neighborhood",
    "m_sharpness": "neighborhood",
    "random_direction_sharpness": "neighborhood",
    "direction_between": "landscape",
    "filter_normalized": "landscape",
    "loss_between": "landscape",
    "loss_slice": "landscape",
    "loss_surface": "landscape",
    "random_directions": "landscape",
}

__all__ = list(_PUBLIC)

if TYPE_CHECKING:
    from .density import SpectralDensity as SpectralDensity
    from .density import hessian_spectral_density as hessian_spectral_density
    from .hessian import Eigenvalues as Eigenvalues
    from .hessian import Trace as Trace
    from .hessian import hessian_eigenvalues as hessian_eigenvalues
    from .hessian import hessian_trace as hessian_trace
    from .landscape import direction_between as direction_between
    from .landscape import filter_normalized as filter_normalized
    from .landscape import loss_between as loss_between
    from .landscape import loss_slice as loss_slice
    from .landscape import loss_surface as loss_surface
    from .landscape import random_directions as random_directions
    from .neighborhood import Sharpness as Sharpness
    from .neighborhood import adaptive_sharpness as adaptive_sharpness
    from .neighborhood import m_sharpness as m_sharpness
    from .neighborhood import random_direction_sharpness as random_direction_sharpness
    from .oracle import LossOracle as LossOracle


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
