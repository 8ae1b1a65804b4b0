"""Weights by name: importing this registers ``tood://NAME`` and ``pip://NAME`` with Detectron2."""

from tood.checkpoint import catalog, packages

__all__ = ["catalog", "packages"]
