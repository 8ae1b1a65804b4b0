"""Runs of a few steps without what would take as long as they do, and nobody looks at: Detectron2
parses its config three times for a key of it and colours it for the log, and matplotlib moves the
parts of plots until they fit.
"""

from detectron2.config import CfgNode
from detectron2.engine import defaults
from matplotlib.layout_engine import ConstrainedLayoutEngine


def lighten(replace=setattr):
    """
    Args:
        replace: function like ``setattr``.
    """
    find_key = defaults._try_get_key

    def find_directly(cfg, key, *others, **default):
        return cfg[key] if isinstance(cfg, CfgNode) else find_key(cfg, key, *others, **default)

    replace(defaults, "_try_get_key", find_directly)
    replace(defaults, "_highlight", lambda code, filename: code)
    replace(ConstrainedLayoutEngine, "execute", lambda self, figure: None)
