"""Train neural networks that pare themselves down: structure is learned in the same run as the weights.

`import pared` is cheap: each public name is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from pared._version import __version__

if TYPE_CHECKING:
    from pared.by_class import train_by_class as train_by_class
    from pared.configuration import show_config as show_config
    from pared.errors import ConfigError as ConfigError
    from pared.errors import DataError as DataError
    from pared.errors import ParedError as ParedError
    from pared.errors import RunError as RunError
    from pared.errors import SurgeryError as SurgeryError
    from pared.errors import TrainingError as TrainingError
    from pared.estimators import ParedClassifier as ParedClassifier
    from pared.estimators import ParedRegressor as ParedRegressor
    from pared.fitting import fit as fit
    from pared.formats.program import export as export
    from pared.methods import L0 as L0
    from pared.methods import GroupLasso as GroupLasso
    from pared.methods import Prune as Prune
    from pared.methods import Shrink as Shrink
    from pared.methods import Slimming as Slimming
    from pared.methods import add_switches as add_switches
    from pared.run import Run as Run
    from pared.searching import search as search
    from pared.shrinking import shrink as shrink
    from pared.sparsifying import sparsify as sparsify
    from pared.surgery import declare as declare
    from pared.surgery import fold as fold
    from pared.surgery import graph as graph
    from pared.surgery import load as load
    from pared.surgery import remove as remove
    from pared.surgery import remove_blocks as remove_blocks
    from pared.surgery import remove_ddp as remove_ddp
    from pared.surgery import remove_dead as remove_dead
    from pared.surgery import save as save
    from pared.train.settings import Settings as Settings

#: Where each public name lives.
_PUBLIC = {
    "ConfigError": "pared.errors",
    "DataError": "pared.errors",
    "GroupLasso": "pared.methods",
    "L0": "pared.methods",
    "ParedClassifier": "pared.estimators",
    "ParedError": "pared.errors",
    "ParedRegressor": "pared.estimators",
    "Prune": "pared.methods",
    "Run": "pared.run",
    "RunError": "pared.errors",
    "Settings": "pared.train.settings",
    "Shrink": "pared.methods",
    "Slimming": "pared.methods",
    "SurgeryError": "pared.errors",
    "TrainingError": "pared.errors",
    "add_switches": "pared.methods",
    "declare": "pared.surgery",
    "export": "pared.formats.program",
    "fit": "pared.fitting",
    "fold": "pared.surgery",
    "graph": "pared.surgery",
    "load": "pared.surgery",
    "remove": "pared.surgery",
    "remove_blocks": "pared.surgery",
    "remove_ddp": "pared.surgery",
    "remove_dead": "pared.surgery",
    "save": "pared.surgery",
    "search": "pared.searching",
    "show_config": "pared.configuration",
    "shrink": "pared.shrinking",
    "sparsify": "pared.sparsifying",
    "train_by_class": "pared.by_class",
}

__all__ = [
    "L0",
    "ConfigError",
    "DataError",
    "GroupLasso",
    "ParedClassifier",
    "ParedError",
    "ParedRegressor",
    "Prune",
    "Run",
    "RunError",
    "Settings",
    "Shrink",
    "Slimming",
    "SurgeryError",
    "TrainingError",
    "__version__",
    "add_switches",
    "declare",
    "export",
    "fit",
    "fold",
    "graph",
    "load",
    "remove",
    "remove_blocks",
    "remove_ddp",
    "remove_dead",
    "save",
    "search",
    "show_config",
    "shrink",
    "sparsify",
    "train_by_class",
]


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'pared' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
