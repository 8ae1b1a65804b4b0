#!/usr/bin/env python3
"""Set up everything the project needs in a virtual environment, from a Python and a package index
alone, and then run one of its main jobs::

    python3 tools/bootstrap.py          # set up only
    python3 tools/bootstrap.py demo     # train, evaluate and draw on a generated data set
    python3 tools/bootstrap.py test     # run the test suite
    python3 tools/bootstrap.py quick    # run the tests that are not marked as slow

If the Python that runs this file has torch or Detectron2 (any version, compiled or not), the
environment sees its packages. Without Detectron2, a pure-Python wheel of v0.6 is made. To use
another Python, run this file with it. ``tood setup`` installs the same packages (tood/app/setup/)
into an existing environment.

This file runs before anything is installed: standard library only, and a syntax that Python 3.6
can read, so that it can report that it is too old.
"""

import argparse
import hashlib
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OLDEST_PYTHON = (3, 9)
PACKAGE = os.path.join(ROOT, "projects", "TOOD")

# In the environment: the Python that it was made with, and the fingerprint of its packages.
STAMP = "tood-bootstrap.txt"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("::")[0].strip())
    parser.add_argument("job", nargs="?", choices=list(JOBS), help="what to run afterwards")
    parser.add_argument("--venv", default=os.path.join(ROOT, ".venv"), help="where to set up")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="options of the job")
    args = parser.parse_args()
    check_python(sys.version_info)
    sys.path.insert(0, PACKAGE)
    from tood.utils.errors import UserError  # a Python that is too old cannot read it

    try:
        python = set_up(args.venv)
    except UserError as error:
        sys.exit("error: {0}".format(error))
    except KeyboardInterrupt:
        sys.exit("error: stopped; run the same command again to continue.")
    if args.job:
        return JOBS[args.job](python, args.rest)
    print("To use it: . {0}/bin/activate".format(os.path.relpath(args.venv)))
    return 0


def run_demo(python, options):
    return subprocess.call([python, "-m", "tood", "demo"] + options, cwd=ROOT)


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
        # In the order of their names: the last files are short, and all workers end together.
        options = ["-n", str(workers), "--dist", "loadfile", "--no-loadscope-reorder"]
    command = [python, "-m", "pytest"] + list(selected) + options
    return subprocess.call(command, cwd=ROOT, env=environ)


JOBS = {"demo": run_demo, "test": run_tests, "quick": run_quick_tests}


def set_up(venv):
    """Make or update the environment, unless it is up to date; return the path of its Python."""
    from tood.app.setup.packages import install_needs
    from tood.app.setup.run_pip import say

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
    install_needs(python, venv, ["-e", ROOT + "[test]"])
    write_lines(stamp, [this_python(), fingerprint()])
    say("The environment {0} is ready.".format(os.path.relpath(venv)))
    return python


def check_python(version):
    """Exit with a sentence if a Python of this version (a tuple) is too old."""
    if tuple(version[:2]) < OLDEST_PYTHON:
        sys.exit(
            "error: This is Python {0}.{1}, and the project needs {2}.{3} or newer; run this file "
            "with a newer one, for example python3.11 tools/bootstrap.py.".format(
                version[0], version[1], *OLDEST_PYTHON
            )
        )


def make_venv(venv):
    """Make an empty environment; of the existing folders, only an environment is replaced."""
    from tood.app.setup.run_pip import last_line, run, say
    from tood.utils.errors import UserError

    earlier = os.path.exists(os.path.join(venv, "pyvenv.cfg"))
    if not earlier and os.path.isdir(venv) and os.listdir(venv):
        raise UserError(
            "{0} contains something that is not a virtual environment; name another folder with "
            "--venv.".format(venv)
        )
    say("Creating {0} with Python {1} ...".format(os.path.relpath(venv), sys.version.split()[0]))
    done = run([sys.executable, "-m", "venv", "--clear", venv])
    if done.returncode != 0:
        raise UserError(
            "Python's venv module could not create {0} ({1}); on Debian and Ubuntu, install "
            "python3-venv.".format(venv, last_line(done.stdout + done.stderr))
        )


def share_packages(venv, python):
    """Make torch and Detectron2 of the Python that runs this file visible in the environment.
    --system-site-packages would skip the packages of a virtual environment.
    """
    from tood.app.setup.packages import has_module
    from tood.app.setup.run_pip import run, say

    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    shared = os.path.join(run([python, "-c", code]).stdout.strip(), "tood-shared-packages.pth")
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
    rooms = os.path.join(PACKAGE, "tood", "app", "setup")
    names = [os.path.join(rooms, name) for name in sorted(os.listdir(rooms)) if name[-3:] == ".py"]
    names += [os.path.join(ROOT, name) for name in ("setup.py", "pyproject.toml")]
    for name in names + [os.path.abspath(__file__)]:
        with open(name, "rb") as f:
            digest.update(f.read())
    return digest.hexdigest()


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
