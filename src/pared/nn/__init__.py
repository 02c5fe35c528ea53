"""Layers that carry structure."""

from pared.nn.adjacency import SparseAdjacency, fix_adjacency
from pared.nn.batch_major import BatchMajor
from pared.nn.gate import Gate
from pared.nn.gated import Channels, Competition, Gated, drop_branches
from pared.nn.graph import Adjacency, FixedAdjacency
from pared.nn.hard_concrete import HardConcrete
from pared.nn.kernel import KernelSwitch, SwitchedConv1d, SwitchedConv2d, SwitchedConv3d, crop_kernels, switch_kernels
from pared.nn.mask_connect import MaskConnect
from pared.nn.scale import Scale
from pared.nn.select import Select
from pared.nn.softmax_gate import SoftmaxGate
from pared.nn.sparse_conv import SparseConv2d
from pared.nn.sparse_linear import SparseLinear
from pared.nn.sparse_sequential import SparseSequential
from pared.nn.switch import Switch, Switched
from pared.nn.zero import Zero, ZeroAttention

__all__ = [
    "Adjacency",
    "BatchMajor",
    "Channels",
    "Competition",
    "FixedAdjacency",
    "Gate",
    "Gated",
    "HardConcrete",
    "KernelSwitch",
    "MaskConnect",
    "Scale",
    "Select",
    "SoftmaxGate",
    "SparseAdjacency",
    "SparseConv2d",
    "SparseLinear",
    "SparseSequential",
    "Switch",
    "Switched",
    "SwitchedConv1d",
    "SwitchedConv2d",
    "SwitchedConv3d",
    "Zero",
    "ZeroAttention",
    "crop_kernels",
    "drop_branches",
    "fix_adjacency",
    "switch_kernels",
]
