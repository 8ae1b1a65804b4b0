#!/usr/bin/env python
"""Draw predictions beside ground truth; the code is in ``tood.commands.draw``."""

from tood.commands.draw import cli

if __name__ == "__main__":
    cli()
