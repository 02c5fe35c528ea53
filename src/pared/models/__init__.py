"""Networks the papers use."""

from pared.models.cnn import cnn
from pared.models.drawing import kaiming_
from pared.models.lenet import lenet
from pared.models.mlp import mlp
from pared.models.resnet import BasicBlock, resnet, wide_resnet
from pared.models.vgg import VGG, vgg

__all__ = ["VGG", "BasicBlock", "cnn", "kaiming_", "lenet", "mlp", "resnet", "vgg", "wide_resnet"]
