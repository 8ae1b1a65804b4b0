"""Commands, code and names in README.md, docs/ and the docstrings of programs are right."""

import argparse
import ast
import importlib
import inspect
import re
import shlex
import sys

import pytest
from conftest import ROOT
from detectron2.config import get_cfg
from detectron2.engine import default_argument_parser

import tood
from tood import add_tood_config
from tood.app import cli
from tood.utils.arguments import split_overrides

PAGES = [*ROOT.glob("*.md"), *sorted(ROOT.glob("docs/*.md")), ROOT / "dev" / "README.md"]
FOLDERS = ("", "tools", "demo", "dev/experiments")
PROGRAMS = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py"))]
OTHERS = ("make", "pip", "source", "tensorboard")  # programs of others
KEYS = r"\b(?:MODEL|INPUT|SOLVER|TEST|DATASETS|DATALOADER)\.[A-Z0-9_.]*[A-Z0-9_]"


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def examples(path):
    """Return the commands of a docstring, which are indented behind "::"."""
    text = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("::\n\n")[2]
    return re.match(r"((    .*)?\n)*", f"{text}\n")[0]


def commands(text):
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
    name, *argv = words
    if name == "tood":
        flags, options = split_overrides(argv[1:])
        parser = cli.make_parser(argv[0])
        assert parser.epilog or not options
        parser.parse_intermixed_args(flags)
    elif name == "lazyconfig_train_net.py":
        with pytest.raises(Parsed):
            default_argument_parser().parse_args(argv)
    elif name not in OTHERS:
        if name.startswith("--") or re.fullmatch(KEYS, name):  # of train_net.py
            words = ["train_net.py", *words]
        start = next(i for i, x in enumerate(words) if x.endswith(".py"))
        paths = [ROOT / x / words[start] for x in ("", "demo")]
        program = importlib.import_module(next(x for x in paths if x.is_file()).stem)
        monkeypatch.setattr(sys, "argv", words[start:])
        with pytest.raises(Parsed):
            (program.parse_args if hasattr(program, "parse_args") else program.main)()


@pytest.mark.parametrize("path", [*PAGES, *PROGRAMS], ids=lambda x: str(x.relative_to(ROOT)))
def test_commands_are_accepted(path, monkeypatch):
    for text in blocks(path, "bash") if path.suffix == ".md" else [examples(path)]:
        for words in commands(text):
            check_command(words, monkeypatch)


@pytest.mark.parametrize(
    "line",
    [
        *("tood fly photos/", "tood train", "tood train photos/ --epoch 3", "python tools/gone.py"),
        *("python train_net.py --epoks 3", "python train_net.py SEED 1 --epochs 3"),
        "python tools/count_cost.py --hight 480",
    ],
)
def test_mistakes_are_found(line, monkeypatch):
    with pytest.raises((SystemExit, AssertionError, KeyError, StopIteration)):
        check_command(*commands(line), monkeypatch)


def resolve(name):
    """Return an object of the package by its name, as tood.app.train."""
    found = tood
    for part in name.split(".")[1:]:
        if not hasattr(found, part):
            importlib.import_module(f"{found.__name__}.{part}")
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda x: str(x.relative_to(ROOT)))
def test_code_compiles_and_its_names_exist(page):
    for block in blocks(page, "python"):
        is_item = block.startswith(" ")  # of a dictionary
        for node in ast.walk(ast.parse(f"{{{block}}}" if is_item else block)):
            name = ast.unparse(getattr(node, "func", node))
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "tood":
                assert all(resolve(f"{node.module}.{x.name}") for x in node.names)
            elif isinstance(node, ast.Attribute) and re.fullmatch(r"tood[.\w]+", name):
                resolve(name)
            elif isinstance(node, ast.Call) and re.fullmatch(r"tood[.\w]+", name):
                keywords = {x.arg: x for x in node.keywords}
                inspect.signature(resolve(name)).bind(*node.args, **keywords)


@pytest.mark.parametrize("page", PAGES, ids=lambda x: str(x.relative_to(ROOT)))
def test_names_in_the_text_exist(page):
    text = page.read_text()
    links = re.findall(r"\]\((?!http)([^)#]+)", text)
    missing = [x for x in links if not (page.parent / x).exists()]
    if page.name != "CHANGELOG.md":  # which names what is gone
        cfg = get_cfg()
        add_tood_config(cfg)
        missing += [x for x in re.findall(KEYS, text) if not is_key(cfg, x.split("."))]
        files = re.findall(r"(?<![/\w])(?:tools|demo|tests|configs|dev)/[\w./]*\w", text)
        missing += [x for x in files if not (ROOT / x).exists()]
        tests = {path.stem: path.read_text() for path in ROOT.glob("tests/**/test_*.py")}
        known = {*tests, *re.findall(r"def (\w+)", "".join(tests.values()))}
        missing += [x for x in re.findall(r"\b(test_\w+)(?:\.py)?`", text) if x not in known]
        missing += [x for x in re.findall(r"`tood ([a-z]+)", text) if x not in cli.COMMANDS]
        for name in re.findall(r"`(tood(?!\.json)\.[\w.]*\w)", text):
            resolve(name)
    assert not missing


def is_key(node, parts):
    return not parts or (parts[0] in node and is_key(node[parts[0]], parts[1:]))
