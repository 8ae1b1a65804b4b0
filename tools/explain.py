#!/usr/bin/env python
"""Say why an object was found, or was not; the code is in
``tood.app.explain``.
"""

from tood.app.explain import cli

if __name__ == "__main__":
    cli()
