"""
TOOD for Detectron2. Importing this package registers the architecture and its backbone, and the
names of ImageNet weights that the configs use.
"""

from . import model_zoo, pretrained, released
from .backbone import build_tood_resnet_fpn_backbone
from .config import add_tood_config
from .detector import TOOD
from .head import TOODHead
from .model_zoo import get_model
from .predictor import Predictor

__all__ = [
    "Predictor",
    "TOOD",
    "TOODHead",
    "add_tood_config",
    "build_tood_resnet_fpn_backbone",
    "get_model",
    "model_zoo",
    "pretrained",
    "released",
]
