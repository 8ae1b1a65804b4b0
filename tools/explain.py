#!/usr/bin/env python
"""Say why an object was found, or was not; the code is in
``tood.commands.explain``.
"""

from tood.commands.explain import cli

if __name__ == "__main__":
    cli()
