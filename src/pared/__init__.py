"""Train neural networks that pare themselves down: structure is learned in the same run as the weights.

`import pared` is cheap: each public name is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from pared._version import __version__

if TYPE_CHECKING:
    from pared.estimators import ParedClassifier as ParedClassifier
    from pared.estimators import ParedRegressor as ParedRegressor
    from pared.fitting import fit as fit
    from pared.methods import Shrink as Shrink
    from pared.run import Run as Run
    from pared.train.settings import Settings as Settings

#: Where each public name lives.
_PUBLIC = {
    "ParedClassifier": "pared.estimators",
    "ParedRegressor": "pared.estimators",
    "Run": "pared.run",
    "Settings": "pared.train.settings",
    "Shrink": "pared.methods",
    "fit": "pared.fitting",
}

__all__ = ["ParedClassifier", "ParedRegressor", "Run", "Settings", "Shrink", "__version__", "fit"]


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'pared' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
