"""The version in one place, and what surrounds the code."""

import re

import yaml
from conftest import ROOT

import tood

NUMBERS = re.compile(r"\d+\.\d+\.\d+")  # Semantic Versioning, without marks of previews


def test_the_version_is_the_same_everywhere():
    assert NUMBERS.fullmatch(tood.__version__)
    headings = re.findall(r"^## \[(.+?)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0][0] == tood.__version__
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", date) for _, date in headings)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == tood.__version__


def test_the_changelog_has_the_sections_of_its_format():
    """Keep a Changelog 1.1.0."""
    sections = re.findall(r"^### (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    known = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert sections and set(sections) <= known


def test_the_citation_has_what_its_format_requires():
    """Citation File Format 1.2.0; cffconvert --validate accepts it."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert str(citation["cff-version"]) == "1.2.0" and citation["license"] == "Apache-2.0"
    paper = citation["preferred-citation"]
    assert {"type", "title", "authors"} <= set(paper) and paper["year"] == 2021


def test_yaml_files_of_the_host_are_read():
    paths = [*ROOT.glob(".github/**/*.yml"), ROOT / ".pre-commit-config.yaml"]
    assert len(paths) >= 4
    for path in paths:
        assert isinstance(yaml.safe_load(path.read_text()), dict), path
