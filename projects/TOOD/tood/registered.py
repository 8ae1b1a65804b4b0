"""Registration on import: the architecture, its backbone and the names of ImageNet weights that the
configs use; and the public names of the package.
"""

from tood import model_zoo
from tood.checkpoint import catalog, packages  # noqa: F401  (register names of weights)
from tood.config.defaults import add_tood_config
from tood.data.datasets import describe_own_data
from tood.model_zoo import get_model
from tood.modeling.backbone import timm_fpn  # noqa: F401  (registers timm's models)
from tood.modeling.backbone.fpn import build_tood_resnet_fpn_backbone
from tood.modeling.detector import TOOD
from tood.modeling.head import TOODHead
from tood.predictor import Predictor

TOOD.describe_data = staticmethod(describe_own_data)

__all__ = [
    "Predictor",
    "TOOD",
    "TOODHead",
    "add_tood_config",
    "build_tood_resnet_fpn_backbone",
    "get_model",
    "model_zoo",
]
