"""
Pictures of sharpness and of training. The functions take arrays and return matplotlib Axes.

```python
from sam_hf import plots

ax = plots.draw_spectral_density({"sam": (grid, density)}, lambda_max={"sam": 3.1})
plots.save(ax.figure, "pictures", "spectrum")
```

Models are given as dictionaries, with the names that the legend shows as keys. Each function draws on the Axes that it
is given, or makes a new figure. No function uses pyplot or changes `rcParams`. Each model has its own colour, line
style and marker. The colours are those of Okabe and Ito, which colour-blind people can tell apart.

The functions need matplotlib: `pip install "sam-hf[plot]"`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = [
    "draw_loss_between",
    "draw_loss_slices",
    "draw_loss_surfaces",
    "draw_m_sharpness",
    "draw_spectral_density",
    "draw_training_curves",
    "save",
]

if TYPE_CHECKING:
    from .draw import draw_loss_between as draw_loss_between
    from .draw import draw_loss_slices as draw_loss_slices
    from .draw import draw_loss_surfaces as draw_loss_surfaces
    from .draw import draw_m_sharpness as draw_m_sharpness
    from .draw import draw_spectral_density as draw_spectral_density
    from .draw import draw_training_curves as draw_training_curves
    from .draw import save as save


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import draw  # imported on first use: it needs matplotlib, which `data` and `style` do not

    return getattr(draw, name)


def __dir__():
    return sorted(__all__)
