"""A sparse network whose connections never change: the comparator that every method has to beat."""

from dataclasses import dataclass
from typing import ClassVar

from pared.methods.weights import WeightMethod


@dataclass(frozen=True)
class Static(WeightMethod):
    """Random connections, fixed from the start; the arguments are those of `WeightMethod`."""

    steady: ClassVar[bool] = True
