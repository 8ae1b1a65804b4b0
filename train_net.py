#!/usr/bin/env python
"""Train or evaluate TOOD, with the options of Detectron2's own ``train_net.py`` and some more; the
code is in ``tood.engine.train``.
"""

from tood.engine.train import cli

if __name__ == "__main__":
    cli()
