#!/usr/bin/env python3
"""Set up everything the project needs in a virtual environment, from a Python and a package index
alone, and then run one of its main jobs::

    python3 tools/bootstrap.py          # set up only
    python3 tools/bootstrap.py demo     # train, evaluate and draw on a generated data set
    python3 tools/bootstrap.py test     # run the test suite
    python3 tools/bootstrap.py quick    # run the tests that are not marked as slow

If the Python that runs this file has torch or Detectron2 (any version, compiled or not), the
environment sees its packages. Without Detectron2, a pure-Python wheel of v0.6 is made
(``bootstrap_detectron2.py``). To use another Python, run this file with it.

This file runs before anything is installed: standard library only, and a syntax that Python 3.6
can read, so that it can report that it is too old.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile

from bootstrap_detectron2 import install_detectron2
from bootstrap_pip import BootstrapError, last_line, pip_install, run, say

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OLDEST_PYTHON = (3, 9)

TORCH = ["torch>=2.0", "torchvision>=0.15"]
TORCH_DISK_GB = 8  # CUDA builds, unpacked, with room for pip to unpack them in

# In the environment: the Python that it was made with, and the fingerprint of what is in it.
STAMP = "tood-bootstrap.txt"

TORCH_CHECK = """
import torch, torchvision
torchvision.ops.nms(torch.tensor([[0., 0., 1., 1.]]), torch.tensor([1.]), 0.5)
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("::")[0].strip())
    parser.add_argument("job", nargs="?", choices=list(JOBS), help="what to run afterwards")
    parser.add_argument("--venv", default=os.path.join(ROOT, ".venv"), help="where to set up")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="options of the job")
    args = parser.parse_args()
    try:
        check_python(sys.version_info)
        python = set_up(args.venv)
    except BootstrapError as error:
        sys.exit("error: {0}".format(error))
    except KeyboardInterrupt:
        sys.exit("error: stopped; run the same command again to go on.")
    if args.job:
        return JOBS[args.job](python, args.rest)
    say("To use it: . {0}/bin/activate".format(os.path.relpath(args.venv)))
    return 0


def run_demo(python, options):
    return subprocess.call([python, os.path.join(ROOT, "tools", "run_demo.py")] + options)


def run_quick_tests(python, options):
    """Run the tests that are not marked as slow; see run_tests."""
    return run_tests(python, options, ["-m", "not slow"])


def run_tests(python, options, selected=()):
    """Run the selected tests with options of pytest, or without any on up to 4 cores; return
    pytest's exit status.
    """
    environ, workers = dict(os.environ), min(4, os.cpu_count() or 1)
    if not options and workers > 1:
        # A thread for each worker: PyTorch's threads wait for each other if there are few cores.
        environ.setdefault("OMP_NUM_THREADS", "1")
        options = ["-n", str(workers), "--dist", "loadfile"]
    command = [python, "-m", "pytest"] + list(selected) + options
    return subprocess.call(command, cwd=ROOT, env=environ)


JOBS = {"demo": run_demo, "test": run_tests, "quick": run_quick_tests}


def set_up(venv):
    """Make or update the environment, unless it is up to date; return the path of its Python."""
    python = os.path.join(venv, "Scripts" if os.name == "nt" else "bin", "python")
    stamp = os.path.join(venv, STAMP)
    before = read_lines(stamp)
    if before == [this_python(), fingerprint()] and os.path.exists(python):
        return python

    if before[:1] != [this_python()]:
        make_venv(venv)
    # Until all is done, it names the environment without its content.
    write_lines(stamp, [this_python()])
    share_packages(venv, python)
    if not has_module(python, "torch") or not has_module(python, "torchvision"):
        check_disk(venv)
        say("Installing PyTorch (a few minutes; several GB with CUDA) ...")
        pip_install(python, TORCH)
    check_torch(python)
    if has_module(python, "detectron2"):
        say("Keeping the Detectron2 that is there.")
    else:
        install_detectron2(python)
    say("Installing this project and what its tests and drawings need ...")
    # cv2 may be there under any of its four package names.
    opencv = [] if has_module(python, "cv2") else ["opencv-python-headless"]
    pip_install(python, opencv + ["-e", ROOT + "[test]"])
    write_lines(stamp, [this_python(), fingerprint()])
    say("The environment {0} is ready.".format(os.path.relpath(venv)))
    return python


def check_python(version):
    """Raise BootstrapError if a Python of this version (a tuple) is too old."""
    if tuple(version[:2]) < OLDEST_PYTHON:
        raise BootstrapError(
            "This is Python {0}.{1}, and the project needs {2}.{3} or newer; run this file with "
            "a newer one, for example python3.11 tools/bootstrap.py.".format(
                version[0], version[1], *OLDEST_PYTHON
            )
        )


def check_disk(folder):
    """Raise BootstrapError if the disk of a folder has no room for PyTorch."""
    free = shutil.disk_usage(folder).free / 2**30
    if free < TORCH_DISK_GB:
        raise BootstrapError(
            "PyTorch needs about {0} GB of disk, and {1} has {2:.1f} GB free; free some, or set "
            "up elsewhere with --venv.".format(TORCH_DISK_GB, folder, free)
        )


def check_torch(python):
    """Raise BootstrapError if torch and torchvision do not work together."""
    done = run([python, "-c", TORCH_CHECK])
    if done.returncode != 0:
        code = "from importlib.metadata import version as v; print('torch', v('torch'), 'and "
        code += "torchvision', v('torchvision'))"
        versions = run([python, "-c", code]).stdout.strip()
        raise BootstrapError(
            "{0} do not go together ({1}); install a pair that belongs together, for example "
            "with: {2} -m pip install --upgrade torch torchvision".format(
                versions or "torch and torchvision", last_line(done.stderr), sys.executable
            )
        )


def make_venv(venv):
    """Make an empty environment; of the existing folders, only an environment is replaced."""
    earlier = os.path.exists(os.path.join(venv, "pyvenv.cfg"))
    if not earlier and os.path.isdir(venv) and os.listdir(venv):
        raise BootstrapError(
            "{0} contains something that is not a virtual environment; name another folder with "
            "--venv.".format(venv)
        )
    say("Creating {0} with Python {1} ...".format(os.path.relpath(venv), sys.version.split()[0]))
    done = run([sys.executable, "-m", "venv", "--clear", venv])
    if done.returncode != 0:
        raise BootstrapError(
            "Python's venv module could not create {0} ({1}); on Debian and Ubuntu, install "
            "python3-venv.".format(venv, last_line(done.stdout + done.stderr))
        )


def share_packages(venv, python):
    """Make torch and Detectron2 of the Python that runs this file visible in the environment.
    --system-site-packages would skip the packages of a virtual environment.
    """
    shared = os.path.join(site_packages(python), "tood-shared-packages.pth")
    if not any(has_module(sys.executable, name) for name in ("torch", "detectron2")):
        if os.path.exists(shared):
            os.remove(shared)
        return
    folders = [p for p in sys.path if os.path.basename(p) in ("site-packages", "dist-packages")]
    say("Using the torch and Detectron2 that {0} has.".format(sys.executable))
    with open(shared, "w") as f:
        for folder in folders:
            # addsitedir, so that packages installed there in editable mode are found as well.
            f.write("import site; site.addsitedir({0!r})\n".format(folder))


def fingerprint():
    """Hash of the checkout's place, and of the files that decide what is installed."""
    digest = hashlib.sha256(ROOT.encode())
    tools = ["tools/bootstrap{0}.py".format(part) for part in ("", "_detectron2", "_pip")]
    for name in tools + ["setup.py", "pyproject.toml"]:
        with open(os.path.join(ROOT, *name.split("/")), "rb") as f:
            digest.update(f.read())
    return digest.hexdigest()


def site_packages(python):
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    return run([python, "-c", code]).stdout.strip()


def has_module(python, name):
    code = "import importlib.util as u, sys; sys.exit(u.find_spec({0!r}) is None)".format(name)
    # -P is too new: a neutral folder keeps the current one's modules out.
    return run([python, "-c", code], cwd=tempfile.gettempdir()).returncode == 0


def this_python():
    return " ".join([sys.version, sys.prefix]).replace("\n", " ")


def write_lines(path, lines):
    with open(path, "w") as f:
        f.write("\n".join(lines))


def read_lines(path):
    try:
        with open(path) as f:
            return f.read().splitlines()
    except OSError:
        return []


if __name__ == "__main__":
    sys.exit(main())
