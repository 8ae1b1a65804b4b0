"""TOOD for Detectron2. Importing this package registers the architecture and its backbone, and the
names of ImageNet weights that the configs use.
"""

import sys

from tood.utils.quiet import silence_libraries

silence_libraries()

# The command line, also as python -m tood, answers within a second where it needs no PyTorch; its
# commands import this themselves.
if "tood_cli" not in sys.modules and sys.argv[:1] != ["-m"]:
    from tood.registered import *  # noqa: F403
    from tood.registered import __all__  # noqa: F401
