"""Commands, code and names in README.md, docs/ and the docstrings of programs are right."""

import argparse
import ast
import importlib
import inspect
import pkgutil
import re
import shlex
import sys

import pytest
from conftest import ROOT
from detectron2.config import get_cfg

import tood
from tood.app import cli
from tood.config.check import known_keys
from tood.utils.arguments import split_overrides

PAGES = ("README.md", "CHANGELOG.md", "dev/README.md", "docs/*.md", "docs/results/*.md")
PROGRAMS = ("*.py", "tools/*.py", "demo/*.py", "dev/experiments/*.py")
OTHERS = ("make", "pip", "source", "tensorboard")  # programs of others
KEYS = r"\b(?:MODEL|INPUT|SOLVER|TEST|DATASETS|DATALOADER)\.[A-Z0-9_.]*[A-Z0-9_]"


def find(patterns):
    return sorted(str(x.relative_to(ROOT)) for pattern in patterns for x in ROOT.glob(pattern))


def blocks(path, language):
    """Return the blocks of a page, or the examples of a docstring, indented behind "::"."""
    text = (ROOT / path).read_text()
    if path.endswith(".md"):
        return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    examples = (ast.get_docstring(ast.parse(text)) or "").partition("::\n\n")[2]
    return [re.match(r"((    .*)?\n)*", f"{examples}\n")[0]]


def split_commands(text):
    """Return the words of each command; those of a fragment begin with a flag or a key."""
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


class Parsed(Exception):
    """Ends a program once it has parsed its command line."""


@pytest.fixture(autouse=True)
def parse_only(monkeypatch):
    parse_args = argparse.ArgumentParser.parse_args

    def parse(parser, argv=None, namespace=None):
        options = getattr(parse_args(parser, argv, namespace), "opts", None) or []
        assert not [x for x in options if x.startswith("--")]
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)


def check_command(words, monkeypatch):
    """Raise an error for a command that a program would not accept."""
    if words[0] == "tood":
        flags, options = split_overrides(words[2:])
        parser = cli.make_parser(words[1])
        assert parser.epilog or not options
        parser.parse_intermixed_args(flags)
    elif words[0] not in OTHERS:
        is_fragment = words[0].startswith("--") or re.fullmatch(KEYS, words[0])
        words = ["train_net.py", *words] if is_fragment else words
        # Detectron2's script has the flags of train_net.py.
        words = [x.replace("lazyconfig_", "") for x in words]
        while not words[0].endswith(".py"):  # torchrun, srun and their flags
            words = words[1:]
        path = next(ROOT / x / words[0] for x in ("", "demo") if (ROOT / x / words[0]).is_file())
        program = importlib.import_module(path.stem)
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(Parsed):
            (program.parse_args if hasattr(program, "parse_args") else program.main)()


@pytest.mark.parametrize("path", find((*PAGES, *PROGRAMS)))
def test_commands_are_accepted(path, monkeypatch):
    for words in split_commands("".join(blocks(path, "bash"))):
        check_command(words, monkeypatch)


MISTAKES = (
    "tood fly|tood train|tood train . --epoch 3|python gone.py|train_net.py SEED 1 --epochs 3"
)


@pytest.mark.parametrize("line", MISTAKES.split("|"))
def test_mistakes_are_found(line, monkeypatch):
    with pytest.raises((SystemExit, AssertionError, KeyError, StopIteration)):
        check_command(line.split(), monkeypatch)


def resolve(name):
    """Return an object of the package by its name, as tood.app.train."""
    short = name.partition(".")[2]
    return getattr(tood, short) if short in tood.__all__ else pkgutil.resolve_name(name)


@pytest.mark.parametrize("page", find(PAGES))
def test_code_compiles_and_its_names_exist(page):
    for block in blocks(page, "python"):
        is_item = block.startswith(" ")  # of a dictionary
        for node in ast.walk(ast.parse(f"{{{block}}}" if is_item else block)):
            name = ast.unparse(getattr(node, "func", node))
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "tood":
                assert all(resolve(f"{node.module}.{x.name}") for x in node.names)
            elif re.fullmatch(r"tood\.[.\w]+", name):
                found = resolve(name)
                if isinstance(node, ast.Call):
                    keywords = {x.arg: x for x in node.keywords}
                    inspect.signature(found).bind(*node.args, **keywords)


@pytest.mark.parametrize("page", sorted({*find(PAGES), "CONTRIBUTING.md"} - {"CHANGELOG.md"}))
def test_names_in_the_text_exist(page):
    text = (ROOT / page).read_text()
    cfg = get_cfg()
    tood.add_tood_config(cfg)
    tests = {path.stem: path.read_text() for path in ROOT.glob("tests/**/test_*.py")}
    known = {*known_keys(cfg), *cli.COMMANDS, *tests}
    known.update(re.findall(r"def (test_\w+)", "".join(tests.values())))
    for pattern in (KEYS, r"`tood ([a-z]+)", r"\b(test_\w+)(?:\.py)?`"):
        assert set(re.findall(pattern, text)) <= known
    files = re.findall(r"(?<![/\w])(?:tools|demo|tests|configs|dev)/[\w./]*\w", text)
    assert not [x for x in files if not (ROOT / x).exists()]
    links = re.findall(r"\]\((?!http)([^)#]+)", text)
    assert not [x for x in links if not (ROOT / page).parent.joinpath(x).exists()]
    for name in re.findall(r"`(tood(?!\.json)\.[\w.]*\w)", text):
        resolve(name)


def test_the_documented_help_is_printed(monkeypatch):
    """Except for what differs between versions of Python: line breaks and headings."""
    monkeypatch.setenv("COLUMNS", "80")
    text = (ROOT / "docs" / "own_data.md").read_text()
    (documented,) = re.findall(r"\$ tood train --help\n(.*?)```", text, re.DOTALL)
    printed = cli.make_parser("train").format_help()
    for old, new in (
        ("optional arguments:", "options:"),
        ("--batch B, --images", "--batch, --images"),
    ):
        documented, printed = documented.replace(old, new), printed.replace(old, new)
    assert documented.split() == printed.split()
