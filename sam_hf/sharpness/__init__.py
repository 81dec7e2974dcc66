"""
Sharpness of any model, dataloader and loss, as arrays: curvature, neighbourhood and landscape of the loss.

```python
from sam_hf.sharpness import LossOracle, hessian_eigenvalues, m_sharpness

oracle = LossOracle.from_trainer(trainer, max_examples=256)
print(hessian_eigenvalues(oracle, k=5).values, m_sharpness(oracle, rho=0.05, m=32).mean)
```
"""

from __future__ import annotations

from .density import SpectralDensity, hessian_spectral_density
from .hessian import Eigenvalues, Trace, hessian_eigenvalues, hessian_trace
from .landscape import direction_between, filter_normalized, loss_between, loss_slice, loss_surface, random_directions
from .neighborhood import Sharpness, adaptive_sharpness, m_sharpness, random_direction_sharpness
from .oracle import LossOracle

__all__ = [
    "Eigenvalues",
    "LossOracle",
    "Sharpness",
    "SpectralDensity",
    "Trace",
    "adaptive_sharpness",
    "direction_between",
    "filter_normalized",
    "hessian_eigenvalues",
    "hessian_spectral_density",
    "hessian_trace",
    "loss_between",
    "loss_slice",
    "loss_surface",
    "m_sharpness",
    "random_direction_sharpness",
    "random_directions",
]
