"""Networks the papers use."""

from pared.models.cnn import cnn
from pared.models.drawing import kaiming_
from pared.models.gcn import GCN, gcn
from pared.models.lenet import lenet
from pared.models.mlp import mlp
from pared.models.resnet import BasicBlock, resnet, wide_resnet
from pared.models.vgg import VGG, vgg

__all__ = ["GCN", "VGG", "BasicBlock", "cnn", "gcn", "kaiming_", "lenet", "mlp", "resnet", "vgg", "wide_resnet"]
