"""``python -m tood``: the command ``tood``."""

import sys

from tood.app.cli import main

sys.exit(main())
