"""The wheel alone: no clone, another folder."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import NO_NETWORK, ROOT

pytest.importorskip("setuptools", minversion="70.1")  # builds the wheel without an index

NO_TORCH = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "torchvision", "detectron2"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
"""


PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


def build_wheel(folder):
    """Build the wheel of a copy of the sources, with one time stamp for all files."""
    source = folder / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("configs", "projects/TOOD/tood"):
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    build = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)]
    environ = dict(os.environ, SOURCE_DATE_EPOCH="1700000000")
    subprocess.run([*PIP, *build], check=True, env=environ)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def site(wheel):
    """Folder where the wheel is installed."""
    site = wheel.parent / "site"
    install = ["install", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run([*PIP, *install], check=True)
    return site


@pytest.mark.slow
def test_two_builds_are_equal(wheel, tmp_path):
    assert build_wheel(tmp_path).read_bytes() == wheel.read_bytes()


@pytest.fixture
def program(site, tmp_path):
    """Function that runs the program in another folder, with the wheel's package."""

    def run(*argv, path=(), status=0):
        paths = [*map(str, path), NO_NETWORK, str(site)]
        environ = dict(os.environ, PYTHONPATH=os.pathsep.join(paths))
        words = [sys.executable, "-m", "tood", *map(str, argv)]
        done = subprocess.run(words, cwd=tmp_path, env=environ, capture_output=True, text=True)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.mark.slow
def test_the_wheel_is_enough(program, site, shapes, tmp_path):
    assert "tood train DATA" in program("--help")
    code = "import tood, tood.config.zoo; print(tood.__file__, tood.config.zoo.CONFIGS)"
    environ = dict(os.environ, PYTHONPATH=os.pathsep.join([NO_NETWORK, str(site)]))
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.stdout.split() == [str(site / "tood" / x) for x in ("__init__.py", "configs")]

    assert (site / "tood" / "py.typed").exists() and (site / "tood" / "__init__.pyi").exists()
    assert "8 images" in program("check", shapes)
    quick = [
        "--image-size",
        "64",
        "--images-per-step",
        "1",
        "MODEL.TOOD.PRECISION_TRAIN",
        "float32",
    ]
    table = program("train", shapes, "--dry-run", *quick)
    assert "small_data" in table and str(ROOT) not in table
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_missing_libraries_are_named_with_the_command_that_installs_them(program, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(NO_TORCH)
    printed = program("predict", "a.pth", "b.jpg", path=[tmp_path], status=1)
    assert printed == "error: torchvision is not installed; tood setup installs it.\n"
    printed = program("setup", "--dry-run", path=[tmp_path])
    assert "torch " in printed and "to install: from the package index, about 6 GB" in printed
    assert "Nothing was installed" in printed
