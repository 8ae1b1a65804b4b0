"""
TOOD for Detectron2. Importing this package registers the architecture and its backbone, and the
names of ImageNet weights that the configs use.
"""

from . import model_zoo, pretrained
from .backbone import build_tood_resnet_fpn_backbone
from .config import add_tood_config
from .detector import TOOD
from .head import TOODHead

__all__ = [
    "TOOD",
    "TOODHead",
    "add_tood_config",
    "build_tood_resnet_fpn_backbone",
    "model_zoo",
    "pretrained",
]
