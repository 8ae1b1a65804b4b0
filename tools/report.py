#!/usr/bin/env python
"""Say what is good and bad about a model, on one page; the code is in
``tood.app.report.make``.
"""

from tood.app.report.make import cli

if __name__ == "__main__":
    cli()
