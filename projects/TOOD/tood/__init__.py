"""TOOD for Detectron2: a detector to read and extend, and an app on top of it.

Names are loaded when they are first used, so that ``import tood`` takes no time. The first of them
registers the architecture, its backbones and the names of weights with Detectron2.
"""

import contextlib
import gc
import importlib

from tood.utils.logs import silence_libraries

__version__ = "0.2.0"  # setup.py reads it

silence_libraries()

# The app: typed functions, which are also the commands of the program ``tood``.
_APP = {
    "calibrate": "tood.app.guarantee.calibrate",
    "check": "tood.app.check",
    "convert": "tood.app.convert.command",
    "count": "tood.app.guarantee.counts",
    "demo": "tood.app.demo",
    "draw": "tood.app.draw",
    "evaluate": "tood.app.evaluate",
    "explain": "tood.app.explain",
    "export": "tood.app.export",
    "guarantee": "tood.app.guarantee.guarantee",
    "load": "tood.app.trained",
    "predict": "tood.app.predict",
    "report": "tood.app.report.make",
    "setup": "tood.app.setup.command",
    "train": "tood.app.train",
    "UserError": "tood.utils.errors",
}
_DETECTOR = {
    "Predictor": "tood.inference.predictor",
    "TOOD": "tood.modeling.detector",
    "TOODHead": "tood.modeling.head",
    "add_tood_config": "tood.config.defaults",
    "build_tood_resnet_fpn_backbone": "tood.modeling.backbone.fpn",
    "get_model": "tood.model_zoo",
    "model_zoo": "tood.model_zoo",
}

__all__ = [*_APP, *_DETECTOR]


@contextlib.contextmanager
def importing():
    """Search for no garbage meanwhile: hundreds of thousands of new objects stay, and are searched
    many times, which takes a fifth of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def __getattr__(name: str):
    module = _APP.get(name) or _DETECTOR.get(name)
    if module is None:
        raise AttributeError(f"module 'tood' has no attribute {name!r}")
    with importing():
        if name in _DETECTOR:
            importlib.import_module("tood.checkpoint.weights")
        found = importlib.import_module(module)
    return found if module == f"tood.{name}" else getattr(found, name)


def __dir__():
    return sorted({*globals(), *__all__})
