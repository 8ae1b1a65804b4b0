"""YAML of others: plain values of a bounded size, or a ValueError or YAMLError."""

import contextlib
import math

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from tood.utils.plain_yaml import MAX_DEPTH, MAX_NODES, load_yaml


def test_plain_values():
    text = """
    a: [1, 0x10, -2.5, .inf, yes, ~, '7', "\\u00e9", é, =]
    date: 2001-02-30
    when: !!str 2001-02-03
    huge: 123456789012345678901234567890
    names: &n {0: x, 1: y}
    again: {<<: *n, 1: z}
    """
    content = load_yaml(text)
    assert content["a"] == [1, 16, -2.5, math.inf, True, None, "7", "é", "é", "="]
    assert content["date"] == "2001-02-30" and content["when"] == "2001-02-03"
    assert content["huge"] == "123456789012345678901234567890"
    assert content["again"] == {0: "x", 1: "z"}
    assert load_yaml("9223372036854775807") == 2**63 - 1
    assert load_yaml("9" * 100_000) == "9" * 100_000
    assert load_yaml("[yes, 007, 2001-01-01]", as_text=True) == ["yes", "007", "2001-01-01"]
    assert load_yaml("") is None


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 30))


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize(
    "text, reason",
    [
        (BOMB, "more than 200,000 values"),
        (BOMB.replace("[x, x]", "{k: v}").replace("[*", "{<<: [*").replace("]\n", "]}\n"), "more"),
        (f"a: &a {'x' * 10**6}\nb: [{', '.join(['*a'] * 1000)}]", "more than 200,000 values"),
        ("a: &a [*a]", "for a value that contains the alias"),
        ("[" * (MAX_DEPTH + 1), f"nested more than {MAX_DEPTH}"),
        ("a: 1\nb: 2\na: 3", "the key a twice"),
        ('"\\ud800"', "surrogates not allowed"),
        ("[", "expected the node content"),
        ("{[]: 1}", "unhashable"),
    ],
)
def test_refused(text, reason, as_text):
    assert len(text) < 2_000_000
    with pytest.raises((yaml.YAMLError, ValueError), match=reason):
        load_yaml(text, as_text)


@pytest.mark.parametrize(
    "tag", ["python/name:os.mkdir", "python/object/apply:os.mkdir", "binary", "timestamp", "set"]
)
def test_tags_that_are_not_plain_are_refused(tag):
    with pytest.raises(yaml.YAMLError, match=f"constructor for the tag .*{tag}"):
        load_yaml(f"a: !!{tag} []")


def test_many_values_are_read():
    assert len(load_yaml("[" + "1," * 20_000 + "]")) == 20_000 < MAX_NODES


@given(st.text(alphabet="ab01:-.[]{}&*!<? \n'\"\\ux%~#,_eE+", max_size=60), st.booleans())
@example("!!int x", False)
@example("!!float ", False)
@example("!!bool maybe", False)
@example("1:" + "59:" * 400 + "1.0", False)
@example("1:" + "60:" * 300 + "1", False)
@example("0b_", False)
def test_any_text_is_read_or_refused(text, as_text):
    with contextlib.suppress(yaml.YAMLError, ValueError):
        load_yaml(text, as_text)
