"""Names of output files."""

import pytest

from tood.utils.files import choose_output, count_up, list_counted


def test_names_count_up(tmp_path):
    used = {"a", "a-2", "a-4", "b-2.png"}.__contains__
    assert count_up("a", used) == "a-3" and count_up("a-2", used) == "a-2-2"
    assert count_up("b", used, ".png") == "b.png" and count_up("c.d", used) == "c.d"
    for name in ("a", "a-2", "a-10", "a-1", "a-02", "a-x", "ab-3"):
        (tmp_path / name).mkdir()
    found = list_counted(str(tmp_path / "a"))
    assert [x[len(str(tmp_path)) + 1 :] for x in found] == ["a-10", "a-2", "a"]
    assert list_counted(str(tmp_path / "none")) == []


@pytest.mark.parametrize("name", ["found", "a.b_1_2.5.png"])
def test_defaults_count_up(tmp_path, capsys, name):
    default = tmp_path / name
    assert choose_output("", str(default)) == str(default)
    assert capsys.readouterr().out == f"Output: {default}\n"
    default.touch()
    expected = tmp_path / {"found": "found-2"}.get(name, "a.b_1_2.5-2.png")
    assert choose_output("", str(default)) == str(expected)
    assert choose_output("", str(default), overwrite=True) == str(default)
    capsys.readouterr()
    assert choose_output(str(default), "other") == str(default)  # typed: nothing to say
    assert capsys.readouterr().out == ""
