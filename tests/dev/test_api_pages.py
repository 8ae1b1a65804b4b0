"""The pages of the Python interface, built from docstrings without a network."""

import html
import re
import subprocess

import pytest
from conftest import ROOT

import tood


def keep_letters(text):
    return re.sub("[^A-Za-z]", "", text)


@pytest.mark.slow
def test_every_public_name_has_its_docstring_on_a_page(tmp_path, warm_python):
    """In a process, since names of ``tood`` are set there."""
    pytest.importorskip("pdoc", reason="an extra")
    command = [warm_python, ROOT / "dev" / "build_api.py", tmp_path / "api"]
    subprocess.run(command, check=True, timeout=300)
    page = (tmp_path / "api" / "tood.html").read_text(encoding="utf-8")
    text = keep_letters(html.unescape(re.sub("<[^>]+>", " ", page)))
    for name in tood.__all__:
        if name == "model_zoo":  # a module, with a page of its functions
            continue
        assert f'id="{name}"' in page, name
        if name in tood._APP:  # others have names of classes in their first lines, with links
            assert keep_letters(getattr(tood, name).__doc__)[:40] in text, name
    assert (tmp_path / "api" / "index.html").is_file()
    assert (tmp_path / "api" / "tood" / "model_zoo.html").is_file()
