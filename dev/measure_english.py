#!/usr/bin/env python
"""Count phrases of a dialect per 10,000 words of docstrings, comments, messages and docs::

    python dev/measure_english.py                 # this project
    python dev/measure_english.py FOLDER ...      # another one
    python dev/measure_english.py --show "of its own"

Rates of Detectron2 0.6 (its package and docs), and of this project before its phrases were
replaced and now::

    phrase                     before   now   Detectron2   limit
    x: of all, of the ...         5.0   0.1         0.00    0.30
    , for it is                   0.0   0.0         0.00    0.30
    where there is, where it      2.8   0.2         0.00    0.30
    holds, held                   2.1   0.0         0.25    0.50
    of what, with what            3.4   0.1         0.38    0.76
    left out, leave out           1.3   0.0         0.13    0.26
    tell, told                    1.6   0.1         0.51    1.02
    of its own                    2.2   0.0         0.25    0.50
    is no X                       1.3   0.2         0.63    1.26
    whatever, anew, Let X         1.5   0.0         0.51    1.02

Detectron2's lists of classes, whose definitions are LVIS's, are not read. The test
``tests/dev/test_english.py`` fails if a phrase is more than twice as frequent as in Detectron2, or
more than ``ALLOWED`` if Detectron2 does not have it.
"""

import argparse
import ast
import io
import re
import sys
import tokenize
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Sequence, Tuple

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (
    *("projects", "docs", "tools", "demo", "configs", "dev/experiments", "tests", "train_net.py"),
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "dev/README.md"),
)
WORD = re.compile(r"[A-Za-z][A-Za-z'-]+")
# Name -> pattern, of text with single blanks; upper and lower case are equal.
PHRASES: Dict[str, str] = {
    "x: of all, of the ...": r"(?<=: )of (?:all|the|each|every|both) ",
    ", for it is": r", for (?:it|they|he|a|the) (?:is|are|was|were|has|have)\b",
    "where there is, where it": r"\bwhere (?:there (?:is|are)|it|they)\b",
    "holds, held": r"\b(?:holds|held)\b",
    "of what, with what": r"\b(?:of|with|from|by|in|to) what\b",
    "left out, leave out": r"\b(?:left|leave|leaves|leaving) (?:\w+ )?out\b",
    "tell, told": r"\b(?:tell|tells|told|telling)\b",
    "of its own": r"\b(?:of|on) (?:its|one's|their|your|his|our) own\b",
    "is no X": r"(?<!there )\b(?:is|are|was) no (?!longer|more|other)\w+",
    "whatever, anew, Let X": r"\b(?:whatever|anew|(?-i:Let) (?:the|it|a|each|us))\b",
}
SKIPPED = ("_categories.py", "test_english.py")  # definitions of classes, and examples of phrases
# Rates of Detectron2 0.6, measured on its folders ``detectron2`` and ``docs``.
DETECTRON2: Dict[str, float] = {
    "x: of all, of the ...": 0.0,
    ", for it is": 0.0,
    "where there is, where it": 0.0,
    "holds, held": 0.25,
    "of what, with what": 0.38,
    "left out, leave out": 0.13,
    "tell, told": 0.51,
    "of its own": 0.25,
    "is no X": 0.63,
    "whatever, anew, Let X": 0.51,
}
ALLOWED = 0.3  # rate of a phrase that Detectron2 does not have


class Source(NamedTuple):
    """Text of a file."""

    path: Path
    texts: Sequence[str]


def get_limit(name: str) -> float:
    """Return the highest allowed rate of a phrase."""
    return 2 * DETECTRON2[name] or ALLOWED


def read_sources(folders: Sequence[Path]) -> Iterator[Source]:
    """Yield docstrings, comments and messages of Python files, and the text of Markdown files."""
    for folder in folders:
        for path in [folder] if folder.is_file() else sorted(folder.rglob("*")):
            if path.suffix == ".py" and not path.name.endswith(SKIPPED):
                yield Source(path, read_python(path.read_text(encoding="utf-8")))
            elif path.suffix == ".md":
                yield Source(path, [read_markdown(path.read_text(encoding="utf-8"))])


def read_python(code: str) -> List[str]:
    """Return strings of several words, including docstrings, names of functions, and comments."""
    strings, comments = [], []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            strings.append(node.value)
        elif isinstance(node, ast.FunctionDef):
            strings.append(node.name.strip("_").replace("_", " "))
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.COMMENT:
            comments.append(token.string.lstrip("#! "))
    # A sentence may continue in the next comment.
    return [*map(squeeze, strings), squeeze(" ".join(comments))]


def read_markdown(text: str) -> str:
    """Return the prose, without code."""
    text = re.sub(r"```.*?```", " ", text, flags=re.DOTALL)
    return squeeze(re.sub(r"`[^`]*`", "CODE", text))


def squeeze(text: str) -> str:
    """Return a text with single blanks."""
    return " ".join(text.split())


def count_words(sources: Sequence[Source]) -> int:
    """Return the number of words."""
    return sum(len(WORD.findall(text)) for source in sources for text in source.texts)


def find_phrase(sources: Sequence[Source], name: str) -> List[Tuple[Path, str]]:
    """Return file and surroundings of each occurrence."""
    pattern = re.compile(PHRASES[name], re.IGNORECASE)
    return [
        (source.path, text[max(match.start() - 40, 0) : match.end() + 40])
        for source in sources
        for text in source.texts
        for match in pattern.finditer(text)
    ]


def measure(sources: Sequence[Source]) -> Dict[str, float]:
    """Return the occurrences of each phrase per 10,000 words."""
    words = max(count_words(sources), 1)
    return {name: 1e4 * len(find_phrase(sources, name)) / words for name in PHRASES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--show", choices=PHRASES, help="print the occurrences of a phrase")
    args = parser.parse_args()
    sources = list(read_sources(args.folders or [ROOT / name for name in FOLDERS]))
    if args.show:
        for path, text in find_phrase(sources, args.show):
            sys.stdout.write(f"{path}: {text}\n")
        return
    for name, rate in measure(sources).items():
        sys.stdout.write(f"{name:25} {rate:5.2f}\n")


if __name__ == "__main__":
    main()
