"""``python -m tood``: the command ``tood``."""

import sys

from tood_cli import main

sys.exit(main())
