"""Labels of drawings: in a font that has their characters, as written, inside the image."""

import contextlib
import functools
import logging
import warnings
from typing import Iterator, Optional, Sequence

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

logger = logging.getLogger(__name__)

MARGIN = 3  # pixels of background around the letters of a label


def printable(text: str) -> str:
    """Escape characters that do not print: control characters, and half of a surrogate pair."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


@contextlib.contextmanager
def fonts_for(labels: Sequence[str]) -> Iterator[None]:
    """Make matplotlib draw in an installed font that has all characters of some labels."""
    font = find_font(frozenset("".join(labels)))
    families = [*([font] if font else []), *matplotlib.rcParams["font.sans-serif"]]
    with matplotlib.rc_context({"font.sans-serif": families}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


@functools.cache
def find_font(letters: frozenset) -> Optional[str]:
    """Return the name of the first installed font that has some letters, None for matplotlib's own
    font. If no font has them, one warning says so, instead of one for each letter.
    """
    default = font_manager.findfont(font_manager.FontProperties(family=["sans-serif"]))
    missing = letters - _read_letters(default)
    if not missing:
        return None
    for font in sorted(font_manager.fontManager.ttflist, key=lambda font: font.name):
        # These have a box for every character.
        if font.name.startswith(("LastResort", "Last Resort")):
            continue
        if letters <= _read_letters(font.fname):
            return font.name
    logger.warning(
        "No installed font has all characters of the class names (for example "
        f"{''.join(sorted(missing)[:5])}): they are drawn as boxes; install one that does, as Noto "
        "Sans CJK."
    )
    return None


@functools.cache
def _read_letters(path: str) -> frozenset:
    try:
        return frozenset(map(chr, FT2Font(path).get_charmap()))
    except (OSError, RuntimeError):  # a damaged font
        return frozenset()


def move_labels_inside(output) -> None:
    """Move the labels of a Detectron2 ``VisImage`` that its border would cut off, and show a "$" in
    them as it is, instead of reading a formula.
    """
    transform, size = output.ax.transData, output.canvas.get_width_height()
    for text in output.ax.texts:
        text.set_parse_math(False)
        # In pixels, from the lower left corner.
        box = text.get_window_extent(output.canvas.get_renderer()).padded(MARGIN)
        shift = np.maximum(-box.min, 0) - np.maximum(box.max - size, 0)
        position = transform.transform(text.get_position()) + shift
        text.set_position(transform.inverted().transform(position))
