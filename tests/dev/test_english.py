"""Phrases of a dialect are not more than twice as frequent as in Detectron2."""

import functools

import measure_english
import pytest
from measure_english import FOLDERS, PHRASES, ROOT, find_phrase, get_limit, measure, read_sources

MARKDOWN = """Where it holds, one is told what it is of.

    A file of its
    own, with images.

`whatever` is code.
```
tell
```
"""
PYTHON = '''
def test_boxes_that_are_no_boxes(x="two words", key="whatever"):
    """Whatever there is no name for."""
    return x  # a sentence that is left
    # out of the code; let it be: there are no more
'''


@functools.cache
def rates():
    return measure(list(read_sources([ROOT / name for name in FOLDERS])))


@pytest.mark.parametrize("name", PHRASES)
def test_phrases_are_rare(name):
    assert rates()[name] <= get_limit(name), "python dev/measure_english.py --show NAME"


def test_the_tree_is_read():
    sources = list(read_sources([ROOT / "docs", ROOT / "dev" / "experiments"]))
    assert len(sources) > 25 and measure_english.count_words(sources) > 20_000


@pytest.mark.parametrize(
    "file, text, expected",
    [
        ("b.md", "Args: boxes: of the image. It holds.", "x: of all, of the ...|holds, held"),
        (
            "a.md",
            MARKDOWN,
            "where there is, where it|holds, held|tell, told|of its own",
        ),
        ("a.py", PYTHON, "left out, leave out|is no X|whatever, anew, Let X"),
        ("a.txt", MARKDOWN, ""),
        ("lvis_categories.py", PYTHON, ""),
    ],
)
def test_phrases_are_counted(tmp_path, file, text, expected):
    (tmp_path / file).write_text(text)
    sources = list(read_sources([tmp_path]))
    found = {name: len(find_phrase(sources, name)) for name in PHRASES}
    assert {name: n for name, n in found.items() if n} == {x: 1 for x in expected.split("|") if x}


def test_rates_are_per_10_000_words(tmp_path):
    (tmp_path / "a.md").write_text("one of its own " + "word " * 96)
    assert measure(list(read_sources([tmp_path])))["of its own"] == pytest.approx(100.0)


def test_limits():
    assert get_limit("of its own") == 0.5 and get_limit(", for it is") == 0.3
