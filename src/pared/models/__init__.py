"""Networks the papers use."""

from pared.models.cnn import cnn, two_layer_cnn
from pared.models.densenet import DenseBlock, DenseLayer, densenet, input_groups
from pared.models.drawing import kaiming_
from pared.models.gcn import GCN, gcn
from pared.models.lenet import lenet
from pared.models.mlp import conic, mlp
from pared.models.resnet import BasicBlock, SqueezeBlock, SqueezeExcite, depth_groups, resnet, senet, wide_resnet
from pared.models.resnext import BranchedBlock, branch_groups, resnext
from pared.models.vgg import VGG, vgg

__all__ = [
    "GCN",
    "VGG",
    "BasicBlock",
    "BranchedBlock",
    "DenseBlock",
    "DenseLayer",
    "SqueezeBlock",
    "SqueezeExcite",
    "branch_groups",
    "cnn",
    "conic",
    "densenet",
    "depth_groups",
    "gcn",
    "input_groups",
    "kaiming_",
    "lenet",
    "mlp",
    "resnet",
    "resnext",
    "senet",
    "two_layer_cnn",
    "vgg",
    "wide_resnet",
]
