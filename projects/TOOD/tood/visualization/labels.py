"""Labels of drawings: in a font that has their characters, shown as written, inside the drawing."""

import contextlib
import functools
import logging
import warnings
from typing import Iterator, Optional, Sequence

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

logger = logging.getLogger(__name__)

MARGIN = 3  # pixels of ground around the letters of a label


def printable(text: str) -> str:
    """Escape what does not print: control characters, and half of a surrogate pair."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


@contextlib.contextmanager
def fonts_for(labels: Sequence[str]) -> Iterator[None]:
    """Let matplotlib draw in an installed font that has all characters of some labels. Without one,
    one warning names a label, instead of one for each character.
    """
    letters = frozenset("".join(labels))
    font = None if letters <= _letters_of(_default_font()) else _font_with(letters)
    families = [font] if font else []
    options = {"font.sans-serif": [*families, *matplotlib.rcParams["font.sans-serif"]]}
    with matplotlib.rc_context(options), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def move_labels_inside(output) -> None:
    """Move the labels of a Detectron2 ``VisImage`` that its border would cut off; and take a "$" in
    them for itself, not for a formula.
    """
    renderer = output.canvas.get_renderer()
    for text in output.ax.texts:
        text.set_parse_math(False)
        box = text.get_window_extent(renderer)  # pixels, from the lower left corner
        right, up = (
            max(-low, 0) - max(high - size, 0)
            for low, high, size in (
                (box.x0 - MARGIN, box.x1 + MARGIN, output.canvas.get_width_height()[0]),
                (box.y0 - MARGIN, box.y1 + MARGIN, output.canvas.get_width_height()[1]),
            )
        )
        x, y = output.ax.transData.transform(text.get_position())
        text.set_position(output.ax.transData.inverted().transform((x + right, y + up)))


def _default_font() -> str:
    return font_manager.findfont(font_manager.FontProperties(family=["sans-serif"]))


@functools.cache
def _letters_of(path: str) -> frozenset:
    try:
        return frozenset(map(chr, FT2Font(path).get_charmap()))
    except (OSError, RuntimeError):  # a damaged font
        return frozenset()


@functools.cache
def _font_with(letters: frozenset) -> Optional[str]:
    fonts = sorted(font_manager.fontManager.ttflist, key=lambda font: (font.style, font.name))
    # One of them has a box for every character there is.
    real = (font for font in fonts if "LastResort" not in font.name.replace(" ", ""))
    found = next((font.name for font in real if letters <= _letters_of(font.fname)), None)
    if found is None:
        unknown = "".join(sorted(letters - _letters_of(_default_font()))[:5])
        logger.warning(
            f"No installed font has all characters of the class names (for example {unknown}): "
            "they are drawn as boxes; install one that does, as Noto Sans CJK."
        )
    return found
