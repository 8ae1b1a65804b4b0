#!/usr/bin/env python
"""Write a trained detector to a file that runs without this project; the code is in
``tood.app.export``.
"""

from tood.app.export import cli

if __name__ == "__main__":
    cli()
