"""TOOD for Detectron2: a detector to read and extend, and an app on top of it.

Names are loaded when they are first used, so that ``import tood`` takes no time. The first of them
registers the architecture, its backbones and the names of weights with Detectron2.
"""

import importlib

from tood.utils.quiet import silence_libraries

silence_libraries()

_MODULES = {
    "Predictor": "tood.inference.predictor",
    "TOOD": "tood.modeling.detector",
    "TOODHead": "tood.modeling.head",
    "add_tood_config": "tood.config.defaults",
    "build_tood_resnet_fpn_backbone": "tood.modeling.backbone.fpn",
    "get_model": "tood.model_zoo",
    "model_zoo": "tood",
}

__all__ = list(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'tood' has no attribute {name!r}")
    importlib.import_module("tood.checkpoint.weights")
    if _MODULES[name] == "tood":
        return importlib.import_module(f"tood.{name}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__():
    return sorted({*globals(), *__all__})
