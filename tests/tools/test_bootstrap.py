"""The set-up tool: its edits, and what it says when something is in the way."""

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import bootstrap
import pytest
from conftest import ROOT
from detectron2.utils.env import TORCH_VERSION

from tood.app.setup import detectron2_wheel, packages, run_pip
from tood.utils.errors import UserError

TOOL = str(ROOT / "tools" / "bootstrap.py")


def one_sentence(error):
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("version", [(2, 7), (3, 6), (3, 8)])
def test_python_too_old(version):
    with pytest.raises(SystemExit) as error:
        bootstrap.check_python(version)
    assert f"This is Python {version[0]}.{version[1]}" in one_sentence(error)


def test_python_new_enough():
    for version in ((3, 9), (3, 13), (4, 0)):
        bootstrap.check_python(version)


def test_modules_are_compiled(tmp_path):
    """Also where Python is not to write what it compiles, and beside a module with a mistake."""
    python = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (home,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (home / "right.py").write_text("A = 1\n")
    (home / "wrong.py").write_text("A = \n")
    run_pip.compile_modules(python)
    assert [x.name.split(".")[0] for x in (home / "__pycache__").iterdir()] == ["right"]


def test_disk_too_small(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(packages.shutil, "disk_usage", lambda _: usage._replace(free=9 * 2**30))
    packages.check_disk(str(tmp_path))
    monkeypatch.setattr(packages.shutil, "disk_usage", lambda _: usage._replace(free=2**30))
    with pytest.raises(UserError) as error:
        packages.check_disk(str(tmp_path))
    assert f"{tmp_path} has 1.0 GB free" in one_sentence(error)


@pytest.mark.parametrize(
    "output, says",
    [
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n"
            "    Expected sha256 5d2e\n         Got        aaaa",
            "does not have the SHA-256",
        ),
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on "
            "device",
            "no disk space left",
        ),
        (
            "WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError("
            "'<...>: Failed to establish a new connection: [Errno -2] Name or service not known')'"
            "\nERROR: Could not find a version that satisfies the requirement torch>=2.0\n"
            "ERROR: No matching distribution found for torch>=2.0",
            "No package index could be reached",
        ),
        (
            "ERROR: Could not find a version that satisfies the requirement torch>=2.0 (from "
            "versions: none)\nERROR: No matching distribution found for torch>=2.0",
            "has no torch>=2.0 for Python {}.{}".format(*sys.version_info[:2]),
        ),
        ("Collecting x\nerror: something else went wrong\n", "something else went wrong"),
    ],
)
def test_failures_of_pip_are_explained(output, says):
    sentence = run_pip.explain(output)
    assert says in sentence and "\n" not in sentence


def test_failing_pip_is_explained_and_not_hidden():
    script = "print('[Errno 28] No space left on device'); raise SystemExit(1)"
    with pytest.raises(UserError, match="no disk space left"):
        run_pip.run_pip([sys.executable, "-c", script])
    run_pip.run_pip([sys.executable, "-c", "print('fine')"])


@pytest.mark.slow
def test_torch_and_torchvision_that_do_not_go_together(monkeypatch):
    packages.check_torch(sys.executable)
    failing = "raise RuntimeError('operator torchvision::nms does not exist')"
    monkeypatch.setattr(packages, "TORCH_CHECK", failing)
    with pytest.raises(UserError) as error:
        packages.check_torch(sys.executable)
    message = one_sentence(error)
    assert "torch 2." in message and "torchvision 0." in message
    assert "do not go together" in message and "torchvision::nms" in message


@pytest.mark.parametrize(
    "version, limits",
    [
        ("2.0.1+cu118", ["numpy<2"]),
        ("2.2.2", ["numpy<2"]),
        ("2.3.0", []),
        ("2.14.1", []),
        ("3.0", []),
        ("git", []),
    ],
)
def test_old_versions_of_pytorch_get_numpy_1(monkeypatch, version, limits):
    printed = SimpleNamespace(stdout=" ".join(version.split(".")[:2]) + "\n")
    monkeypatch.setattr(packages, "run", lambda command: printed)
    assert packages.list_limits("python") == limits


def test_limits_of_this_python():
    expected = ["numpy<2"] if TORCH_VERSION < (2, 3) else []
    assert packages.list_limits(sys.executable) == expected


def test_edits_change_exactly_what_they_name(tmp_path):
    file = tmp_path / "layers" / "a.py"
    file.parent.mkdir()
    file.write_text("from detectron2 import _C\nx = np.bool(1) + np.int(2) + np.int64(3)\n")
    edits = [
        ("layers/a.py", *detectron2_wheel._OPTIONAL_EXTENSION, 1),
        ("layers/a.py", *detectron2_wheel._NUMPY_ALIASES, 2),
    ]
    detectron2_wheel.apply_edits(str(tmp_path), edits)
    text = file.read_text()
    assert "x = bool(1) + int(2) + np.int64(3)\n" in text
    assert "except ImportError" in text
    compile(text, "a.py", "exec")

    with pytest.raises(UserError) as error:
        detectron2_wheel.apply_edits(str(tmp_path), edits[1:])  # nothing left to change
    assert "layers/a.py" in one_sentence(error) and "0 times instead of 2" in str(error.value)


def detectron2_version():
    try:
        return metadata.version("detectron2")
    except metadata.PackageNotFoundError:  # used from its source, not installed
        return ""


@pytest.mark.skipif(
    not detectron2_version().endswith("+compat"), reason="needs the wheel that the tool makes"
)
def test_edited_files_are_in_the_installed_wheel():
    package = Path(metadata.distribution("detectron2").locate_file("detectron2"))
    for name, old, new, _ in detectron2_wheel.EDITS:
        text = (package / name).read_text()
        compile(text, name, "exec")
        if isinstance(old, re.Pattern):
            assert old.search(text) is None
        else:
            assert new in text and (old in new or old not in text)


def test_archive_is_unpacked(tmp_path):
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        info = tarfile.TarInfo("top/setup.py")
        info.size = 5
        tar.addfile(info, io.BytesIO(b"x = 1"))
    folder = detectron2_wheel.unpack(str(archive), str(tmp_path / "out"))
    assert folder == str(tmp_path / "out" / "top")


@pytest.mark.slow
def test_wheel_says_what_it_is(tmp_path):
    for package in ("detectron2", "detectron2/model_zoo"):
        (tmp_path / "source" / package).mkdir(parents=True)
        (tmp_path / "source" / package / "__init__.py").write_text("")
    configs = tmp_path / "source" / "detectron2" / "model_zoo" / "configs"
    configs.mkdir()
    (configs / "a.yaml").write_text("VERSION: 2\n")
    script = tmp_path / "source" / detectron2_wheel.SCRIPT
    script.parent.mkdir()
    script.write_text("#!/usr/bin/env python\n")
    pytest.importorskip("setuptools", minversion="70.1")  # builds the wheel without an index
    wheel = detectron2_wheel.build_wheel(
        sys.executable, str(tmp_path / "source"), str(tmp_path / "wheels")
    )
    assert wheel.endswith("detectron2-0.6+compat-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "detectron2/model_zoo/configs/a.yaml" in names
    assert "detectron2-0.6+compat.data/scripts/lazyconfig_train_net.py" in names


def test_jobs_run_pytest_with_their_options(monkeypatch):
    calls = []
    monkeypatch.setattr(bootstrap.subprocess, "call", lambda words, **_: calls.append(words[3:]))
    bootstrap.JOBS["quick"]("python", [])
    bootstrap.JOBS["quick"]("python", ["-x"])
    bootstrap.JOBS["test"]("python", ["-k", "x"])
    assert calls[0][:2] == ["-m", "not slow"]
    assert calls[1:] == [["-m", "not slow", "-x"], ["-k", "x"]]


def test_stamp_makes_the_second_run_do_nothing(tmp_path, monkeypatch):
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").write_text("")
    bootstrap.write_lines(
        str(venv / bootstrap.STAMP), [bootstrap.this_python(), bootstrap.fingerprint()]
    )

    class Started(Exception):
        pass

    def start(*_):
        raise Started

    monkeypatch.setattr(bootstrap, "make_venv", start)
    monkeypatch.setattr(bootstrap, "share_packages", start)
    assert bootstrap.set_up(str(venv)) == str(venv / "bin" / "python")
    before = bootstrap.fingerprint()
    root = tmp_path / "moved"  # another checkout, of the same content
    root.mkdir()
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, root / name)
    monkeypatch.setattr(bootstrap, "ROOT", str(root))
    assert bootstrap.fingerprint() != before
    with pytest.raises(Started):
        bootstrap.set_up(str(venv))


def test_another_python_gets_a_separate_environment(tmp_path, monkeypatch):
    venv = tmp_path / "venv"
    venv.mkdir()
    (venv / bootstrap.STAMP).write_text("3.8 elsewhere")
    made = []
    monkeypatch.setattr(bootstrap, "make_venv", made.append)
    monkeypatch.setattr(bootstrap, "share_packages", lambda *_: sys.exit("enough"))
    with pytest.raises(SystemExit, match="enough"):
        bootstrap.set_up(str(venv))
    assert made == [str(venv)]


def test_folder_of_something_else_is_not_erased(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not a virtual environment"):
        bootstrap.make_venv(str(tmp_path))
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.slow
def test_packages_of_the_chosen_python_are_shared(tmp_path):
    """An environment that looks into this Python's packages, editable ones included."""
    venv = tmp_path / "venv"
    python = str(venv / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    assert not packages.has_module(python, "torch")
    bootstrap.share_packages(str(venv), python)
    assert packages.has_module(python, "torch")
    assert packages.has_module(python, "detectron2")


def test_command_line_reports_and_fails(tmp_path):
    done = subprocess.run(
        [sys.executable, TOOL, "--venv", "/proc/none/venv"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: Python's venv module could not create /proc/none/venv")
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_set_up_needs_the_standard_library_alone():
    code = "from tood.app.setup import packages; from tood.utils.errors import UserError"
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "projects" / "TOOD")}
    subprocess.run([sys.executable, "-S", "-c", code], env=environ, check=True)
