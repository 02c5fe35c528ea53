"""Layers that carry structure."""

from pared.nn.adjacency import SparseAdjacency
from pared.nn.batch_major import BatchMajor
from pared.nn.gate import Gate
from pared.nn.graph import Adjacency, FixedAdjacency
from pared.nn.hard_concrete import HardConcrete
from pared.nn.kernel import KernelSwitch, SwitchedConv1d, SwitchedConv2d, SwitchedConv3d, crop_kernels, switch_kernels
from pared.nn.select import Select
from pared.nn.sparse_linear import SparseLinear
from pared.nn.switch import Switch, Switched
from pared.nn.zero import Zero

__all__ = [
    "Adjacency",
    "BatchMajor",
    "FixedAdjacency",
    "Gate",
    "HardConcrete",
    "KernelSwitch",
    "Select",
    "SparseAdjacency",
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
