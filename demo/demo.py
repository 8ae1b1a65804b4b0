#!/usr/bin/env python
"""Detect objects in images, videos or a webcam's, and draw them; the code is in
``tood.app.predict``.
"""

from tood.app.predict import cli

if __name__ == "__main__":
    cli()
