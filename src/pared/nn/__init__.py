"""Layers that carry structure."""

from pared.nn.batch_major import BatchMajor
from pared.nn.hard_concrete import HardConcrete
from pared.nn.kernel import KernelSwitch, SwitchedConv1d, SwitchedConv2d, SwitchedConv3d, crop_kernels, switch_kernels
from pared.nn.select import Select
from pared.nn.sparse_conv import SparseConv2d
from pared.nn.sparse_linear import SparseLinear
from pared.nn.switch import Switch, Switched
from pared.nn.zero import Zero

__all__ = [
    "BatchMajor",
    "HardConcrete",
    "KernelSwitch",
    "Select",
    "SparseConv2d",
    "SparseLinear",
    "Switch",
    "Switched",
    "SwitchedConv1d",
    "SwitchedConv2d",
    "SwitchedConv3d",
    "Zero",
    "crop_kernels",
    "switch_kernels",
]
