#!/usr/bin/env python
"""Draw predictions beside ground truth; the code is in ``tood.app.draw``."""

from tood.app.draw import cli

if __name__ == "__main__":
    cli()
