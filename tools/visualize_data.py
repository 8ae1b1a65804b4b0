#!/usr/bin/env python
"""Check data sets, and draw what the trainer gets to see of them; the code is in
``tood.app.view``.
"""

from tood.app.view import cli

if __name__ == "__main__":
    cli()
