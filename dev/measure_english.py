#!/usr/bin/env python
"""Count phrases of a dialect per 10,000 words of docstrings, comments, messages and docs::

    python dev/measure_english.py                 # this project
    python dev/measure_english.py FOLDER ...      # another one
    python dev/measure_english.py --show "of its own"

Per 10,000 words, this project and Detectron2 0.6 (package and docs)::

RATES

``tests/dev/test_english.py`` compares this project with the second column: at most twice its rate,
and at most ALLOWED where Detectron2 does not have the phrase at all.
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
FOLDERS = ("projects", "docs", "tools", "demo", "configs", "tests", "README.md", "CONTRIBUTING.md")
WORD = re.compile(r"[A-Za-z][A-Za-z'-]+")
# Name -> pattern, of text in which white space is one blank each.
PHRASES: Dict[str, str] = {
    "Args entry 'of all ...'": r"(?<=: )of (?:all|the|each|every|both) ",
    ", for it is": r", for (?:it|they|he|a|the) (?:is|are|was|were|has|have)\b",
    "where there is, where it": r"\bwhere (?:there (?:is|are)|it|they)\b",
    "holds": r"\b(?:holds|held)\b",
    "of what, with what": r"\b(?:of|with|from|by|in|to) what\b",
    "left out, leave out": r"\b(?:left|leave|leaves|leaving) (?:\w+ )?out\b",
    "tell, told": r"\b(?:tell|tells|told|telling)\b",
    "of its own": r"\b(?:of|on) (?:its|one's|their|your|his|our) own\b",
    "is no X": r"(?<![Tt]here )\b(?:is|are|was) no (?!longer|more|other)\w+",
    "whatever, anew, let X": r"\b(?:whatever|anew|Let (?:the|it|a|each|us))\b",
}


class Source(NamedTuple):
    """Text of a file."""

    path: Path
    texts: Sequence[str]


def read_sources(folders: Sequence[Path]) -> Iterator[Source]:
    """Yield docstrings, comments and messages of Python files, and the text of Markdown files."""
    for folder in folders:
        for path in [folder] if folder.is_file() else sorted(folder.rglob("*")):
            if path.suffix == ".py":
                yield Source(path, read_python(path.read_text(encoding="utf-8")))
            elif path.suffix == ".md":
                yield Source(path, [read_markdown(path.read_text(encoding="utf-8"))])


def read_python(code: str) -> List[str]:
    """Return strings of several words, docstrings among them, comments and names of functions."""
    strings, comments = [], []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            strings.append(node.value)
        elif isinstance(node, ast.FunctionDef):
            strings.append(node.name.strip("_").replace("_", " "))
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.COMMENT:
            comments.append(token.string.lstrip("#! "))
    # A sentence may go on in the next comment.
    return [*map(squeeze, strings), squeeze(" ".join(comments))]


def read_markdown(text: str) -> str:
    """Return the prose: without blocks of code, and code in lines."""
    text = re.sub(r"```.*?```", " ", text, flags=re.DOTALL)
    return squeeze(re.sub(r"`[^`]*`", "CODE", text))


def squeeze(text: str) -> str:
    """Return a text with single blanks."""
    return " ".join(text.split())


def count_words(sources: Sequence[Source]) -> int:
    """Return the number of words."""
    return sum(len(WORD.findall(text)) for source in sources for text in source.texts)


def find_phrase(sources: Sequence[Source], pattern: str) -> List[Tuple[Path, str]]:
    """Return file and surroundings of each match."""
    return [
        (source.path, text[max(match.start() - 40, 0) : match.end() + 40])
        for source in sources
        for text in source.texts
        for match in re.finditer(pattern, text)
    ]


def measure(folders: Sequence[Path]) -> Dict[str, float]:
    """Return the occurrences of each phrase per 10,000 words."""
    sources = list(read_sources(folders))
    words = max(count_words(sources), 1)
    return {
        name: 1e4 * len(find_phrase(sources, pattern)) / words for name, pattern in PHRASES.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--show", choices=PHRASES, help="print the matches of a phrase")
    args = parser.parse_args()
    folders = args.folders or [ROOT / name for name in FOLDERS]
    if args.show:
        for path, text in find_phrase(list(read_sources(folders)), PHRASES[args.show]):
            sys.stdout.write(f"{path}: {text}\n")
        return
    for name, rate in measure(folders).items():
        sys.stdout.write(f"{name:28} {rate:5.1f}\n")


if __name__ == "__main__":
    main()
