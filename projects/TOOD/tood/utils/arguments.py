"""Command lines of programs."""

import argparse
import os
import re
import sys
from typing import List, Optional, Sequence, Tuple

from tood.utils.errors import UserError


def make_parser(docstring: str) -> argparse.ArgumentParser:
    """Return a parser that describes a program by its docstring: the text before the first "::"
    and, after the list of arguments, the examples behind it as they are.
    """
    description, _, epilog = docstring.partition("::")
    formatter = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=formatter
    )


def parse_arguments(
    parser: argparse.ArgumentParser, argv: Optional[Sequence[str]] = None
) -> argparse.Namespace:
    """Parse a command line. "~" at the start of a path is the home folder, even if no shell
    expands it.

    Raises:
        UserError: for a flag among the overrides of the config, which would swallow it.
    """
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args([expand_home(str(x)) for x in argv])
    flags = [x for x in getattr(args, "opts", None) or () if re.match(r"--[a-z]", x)]
    if flags:
        raise UserError(
            f"{flags[0]} stands among the KEY VALUE options; flags go before KEY VALUE options."
        )
    return args


def split_overrides(argv: Sequence[str]) -> Tuple[List[str], List[str]]:
    """Split a command line before its first KEY VALUE option: a name in capitals with a point, or
    one of Detectron2's keys without.
    """
    argv = [str(x) for x in argv]
    keys = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+|OUTPUT_DIR|SEED|VIS_PERIOD|CUDNN_BENCHMARK")
    first = next((i for i, x in enumerate(argv) if keys.fullmatch(x)), len(argv))
    flags = [x for x in argv[first:] if re.match(r"--[a-z]", x)]
    if flags:
        raise UserError(
            f"{flags[0]} stands among the KEY VALUE options; flags go before KEY VALUE options."
        )
    return argv[:first], [expand_home(x) for x in argv[first:]]


def expand_home(text: str) -> str:
    """Replace "~" at the start of a path: of the text, or after a colon, a comma or "="."""
    home = os.path.expanduser("~").replace("\\", r"\\")
    return re.sub(r"""(^|[:=,'"([])~(?=/|$)""", rf"\g<1>{home}", text)
