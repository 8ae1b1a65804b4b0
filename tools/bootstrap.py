#!/usr/bin/env python3
"""
Set up everything the project needs in a virtual environment of its own, from nothing but a
Python and a package index, and then run one of its main jobs::

    python3 tools/bootstrap.py          # set up only
    python3 tools/bootstrap.py demo     # train, evaluate and draw on a generated data set
    python3 tools/bootstrap.py test     # run the test suite

What the Python that runs this file has already is kept: if it has torch or Detectron2 (any
version, compiled or not), the environment sees its packages. Without Detectron2, a pure-Python
wheel of v0.6 is made from the source distribution on the package index; ``EDITS`` lists all that
is changed in it. To use another Python, run this file with it.

This file runs before anything is installed: standard library only, and a syntax that Python 3.6
can read, in order to be told that it is too old.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OLDEST_PYTHON = (3, 9)

TORCH = ["torch>=2.0", "torchvision>=0.15"]
TORCH_DISK_GB = 8  # CUDA builds, unpacked, with room for pip to unpack them in

# Detectron2's own Python files of tag v0.6, packaged by somebody who left its C++ sources out.
SDIST = "pb1-detectron2==0.6"
SDIST_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
WHEEL_VERSION = "0.6+compat"
NEWEST_PIP_FOR_SDIST = "pip<26.1"  # later ones refuse the URL in one of its unused extras

# What Detectron2 v0.6 asks for, without what only its exporters and developers need.
DETECTRON2_REQUIRES = [
    "Pillow>=7.1",
    "matplotlib",
    "pycocotools>=2.0.2",
    "termcolor>=1.1",
    "yacs>=0.1.8",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7,<0.1.10",
    "omegaconf>=2.1,<2.4",
    "hydra-core>=1.1",
]

_OPTIONAL_EXTENSION = (
    "from detectron2 import _C\n",
    "try:\n    from detectron2 import _C\nexcept ImportError:  # built without the extension\n"
    "    _C = None\n",
)
_NUMPY_ALIASES = (re.compile(r"\bnp\.(bool|int|float)\b"), r"\1")

# (file, what it says, what it says afterwards, how often): the lines of v0.6 that break without
# the extension or with today's libraries. Detectron2's main branch has changed them all in the
# same way.
EDITS = [
    # The compiled extension becomes optional.
    ("layers/deform_conv.py", *_OPTIONAL_EXTENSION, 1),
    ("layers/roi_align_rotated.py", *_OPTIONAL_EXTENSION, 1),
    ("layers/rotated_boxes.py", *_OPTIONAL_EXTENSION, 1),
    (
        "evaluation/coco_evaluation.py",
        "from detectron2.evaluation.fast_eval_api import COCOeval_opt\n",
        "try:\n    from detectron2.evaluation.fast_eval_api import COCOeval_opt\n"
        "except ImportError:  # built without the extension\n    COCOeval_opt = COCOeval\n",
        1,
    ),
    # caffe2 is gone from PyTorch.
    (
        "export/__init__.py",
        "from .api import *\n",
        "try:\n    from .api import *\nexcept ImportError:  # caffe2 is optional\n    pass\n",
        1,
    ),
    # Pillow 10 dropped LINEAR, the old name of BILINEAR.
    ("data/transforms/transform.py", "interp=Image.LINEAR", "interp=Image.BILINEAR", 1),
    # NumPy 1.24 dropped its aliases of Python's types.
    ("data/build.py", *_NUMPY_ALIASES, 2),
    ("structures/masks.py", *_NUMPY_ALIASES, 3),
    ("evaluation/pascal_voc_evaluation.py", *_NUMPY_ALIASES, 2),
    ("evaluation/sem_seg_evaluation.py", *_NUMPY_ALIASES, 7),
    ("utils/visualizer.py", *_NUMPY_ALIASES, 3),
    ("utils/video_visualizer.py", *_NUMPY_ALIASES, 1),
    # setuptools 82 dropped pkg_resources.
    ("model_zoo/model_zoo.py", "import pkg_resources\n", "", 1),
    (
        "model_zoo/model_zoo.py",
        'pkg_resources.resource_filename(\n        "detectron2.model_zoo", '
        'os.path.join("configs", config_path)\n    )',
        'os.path.join(os.path.dirname(__file__), "configs", config_path)',
        1,
    ),
    # Python 3.11 samples from sequences only.
    (
        "data/common.py",
        "self._rng.sample(self._fallback_candidates, k=1)",
        "self._rng.sample(list(self._fallback_candidates), k=1)",
        1,
    ),
    # Since PyTorch 2.0 its schedulers are no instances of _LRScheduler, and were not saved.
    (
        "engine/hooks.py",
        "torch.optim.lr_scheduler._LRScheduler",
        'getattr(torch.optim.lr_scheduler, "LRScheduler", None)',
        2,
    ),
]

# What stands in pip's output, and what it means. The first that fits is told.
FAILURES = [
    (
        r"THESE PACKAGES DO NOT MATCH THE HASHES",
        "The source distribution {0} from the package index does not have the expected SHA-256 "
        "{1}; nothing of it was run. Use another index, or install Detectron2 yourself.".format(
            SDIST, SDIST_SHA256
        ),
    ),
    (
        r"No space left on device|Errno 28|Disk quota exceeded",
        "There is no disk space left for the environment; free about {0} GB, or set TMPDIR to a "
        "larger disk if only the temporary folder is full.".format(TORCH_DISK_GB),
    ),
    (
        r"NewConnectionError|ConnectTimeoutError|ReadTimeoutError|ProxyError|NameResolutionError"
        r"|Temporary failure in name resolution|Failed to establish a new connection"
        r"|Connection (refused|reset|aborted)|Network is unreachable|CERTIFICATE_VERIFY_FAILED",
        "No package index could be reached; connect this machine to one, or name one with "
        "PIP_INDEX_URL.",
    ),
    (
        r"No matching distribution found for (\S+)",
        "The package index has no {match} for Python {python}; use another Python, or another "
        "index with PIP_INDEX_URL.",
    ),
]

STAMP = "tood-bootstrap.json"  # in the environment: what it was made of

TORCH_CHECK = """
import torch, torchvision
torchvision.ops.nms(torch.tensor([[0., 0., 1., 1.]]), torch.tensor([1.]), 0.5)
"""


class BootstrapError(Exception):
    """What went wrong and what to do, in one sentence for the user."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("::")[0].strip())
    parser.add_argument("job", nargs="?", choices=["demo", "test"], help="what to run afterwards")
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
    if args.job == "demo":
        return subprocess.call([python, os.path.join(ROOT, "tools", "run_demo.py")] + args.rest)
    if args.job == "test":
        return subprocess.call([python, "-m", "pytest"] + (args.rest or ["tests"]), cwd=ROOT)
    say("To use it: . {0}/bin/activate".format(os.path.relpath(args.venv)))
    return 0


def set_up(venv):
    """
    Bring the environment to what this file describes; do nothing if it is there already.

    Returns:
        path of the environment's Python.
    """
    python = os.path.join(venv, "Scripts" if os.name == "nt" else "bin", "python")
    stamp = os.path.join(venv, STAMP)
    state = {"python": [sys.version, sys.prefix], "root": ROOT, "files": fingerprint()}
    before = read_json(stamp)
    if before == state and os.path.exists(python):
        return python

    if before is None or before["python"] != state["python"]:
        make_venv(venv)
    # Until all is done, it says that the environment is there but not what is in it.
    write_json(stamp, dict(state, files=None))
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
    say("Installing this project and what its tests and pictures need ...")
    # cv2 may be there under any of its four package names.
    opencv = [] if has_module(python, "cv2") else ["opencv-python-headless"]
    pip_install(python, opencv + ["-e", ROOT + "[test]"])
    write_json(stamp, state)
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
        versions = run(
            [
                python,
                "-c",
                "from importlib.metadata import version as v;"
                "print('torch', v('torch'), 'and torchvision', v('torchvision'))",
            ]
        ).stdout.strip()
        raise BootstrapError(
            "{0} do not go together ({1}); install a pair that belongs together, for example "
            "with: {2} -m pip install --upgrade torch torchvision".format(
                versions or "torch and torchvision", last_line(done.stderr), sys.executable
            )
        )


def make_venv(venv):
    """Make an empty environment, in the place of an earlier one but of nothing else."""
    earlier = os.path.exists(os.path.join(venv, "pyvenv.cfg"))
    if not earlier and os.path.isdir(venv) and os.listdir(venv):
        raise BootstrapError(
            "{0} holds something that is no virtual environment; name another folder with "
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
    """
    Let the environment see torch and Detectron2 of the Python that runs this file. Not by
    --system-site-packages, which skips that Python's packages where it is a virtual environment
    itself.
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


def install_detectron2(python):
    say("Making a pure-Python wheel of Detectron2 v0.6 ...")
    pip_install(python, ["setuptools>=70.1", "wheel"])
    with tempfile.TemporaryDirectory() as tmp:
        source = unpack(download_sdist(python, tmp), os.path.join(tmp, "source"))
        apply_edits(os.path.join(source, "detectron2"), EDITS)
        wheel = build_wheel(python, source, os.path.join(tmp, "wheel"))
        say("Installing {0} and what it needs ...".format(os.path.basename(wheel)))
        pip_install(python, [wheel])


def download_sdist(python, folder):
    """
    Returns:
        path of the archive, whose hash is the expected one: pip checks it before running
        anything of it.
    """
    requirements = os.path.join(folder, "requirements.txt")
    with open(requirements, "w") as f:
        f.write("{0} --hash=sha256:{1}\n".format(SDIST, SDIST_SHA256))
    pip = pip_for_sdist(python, folder)
    command = ["download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    run_pip(pip + command + ["-r", requirements, "-d", folder])
    (archive,) = [name for name in os.listdir(folder) if name.endswith(".tar.gz")]
    return os.path.join(folder, archive)


def pip_for_sdist(python, folder):
    """Command of a pip that still downloads the source distribution."""
    version = run([python, "-m", "pip", "--version"]).stdout.split()[1]
    if tuple(int(n) for n in re.findall(r"\d+", version)[:2]) < (26, 1):
        return [python, "-m", "pip"]
    target = os.path.join(folder, "pip")
    pip_install(python, ["--target", target, NEWEST_PIP_FOR_SDIST])
    return [python, os.path.join(target, "pip")]


def unpack(archive, folder):
    """
    Returns:
        the one folder at the top of the archive.
    """
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extractall(folder, filter="data")
        else:
            tar.extractall(folder)
    (top,) = os.listdir(folder)
    return os.path.join(folder, top)


def apply_edits(package, edits):
    """
    Args:
        package: folder of the package to change.
        edits: like ``EDITS``.

    Raises:
        BootstrapError: if a file does not hold the text exactly as often as expected.
    """
    for name, old, new, expected in edits:
        path = os.path.join(package, *name.split("/"))
        with open(path, encoding="utf-8") as f:
            text = f.read()
        if isinstance(old, str):
            text, count = text.replace(old, new), text.count(old)
        else:
            text, count = old.subn(new, text)
        if count != expected:
            raise BootstrapError(
                "Detectron2's {0} has {1!r} {2} times instead of {3}: this is not the v0.6 that "
                "the compatibility edits are made for.".format(name, old, count, expected)
            )
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)


def build_wheel(python, source, folder):
    """
    Returns:
        path of a wheel of Detectron2 without its extension, whose version says so.
    """
    for name in ("setup.cfg", "pyproject.toml"):
        if os.path.exists(os.path.join(source, name)):
            os.remove(os.path.join(source, name))
    with open(os.path.join(source, "setup.py"), "w") as f:
        f.write(
            textwrap.dedent(
                """
                from setuptools import find_packages, setup

                projects = {{
                    "detectron2.projects.point_rend": "projects/PointRend/point_rend",
                    "detectron2.projects.deeplab": "projects/DeepLab/deeplab",
                    "detectron2.projects.panoptic_deeplab":
                        "projects/Panoptic-DeepLab/panoptic_deeplab",
                }}
                setup(
                    name="detectron2",
                    version={version!r},
                    license="Apache-2.0",
                    description="Detectron2 v0.6, pure Python, with compatibility edits",
                    packages=find_packages(include=["detectron2*"]) + list(projects),
                    package_dir=projects,
                    package_data={{
                        "detectron2.model_zoo": ["configs/**/*.yaml", "configs/**/*.py"]
                    }},
                    python_requires=">=3.9",
                    install_requires={requires!r},
                )
                """
            ).format(version=WHEEL_VERSION, requires=DETECTRON2_REQUIRES)
        )
    run_pip(
        [python, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source]
    )
    (wheel,) = os.listdir(folder)
    return os.path.join(folder, wheel)


def pip_install(python, packages):
    run_pip([python, "-m", "pip", "install"] + packages)


def run_pip(command):
    """Run pip, show what it downloads, and raise BootstrapError with what its failure means."""
    environment = dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1")
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
        env=environment,
    )
    output = []
    for line in process.stdout:
        output.append(line)
        # Large files take long enough to be told of.
        if re.search(r"Downloading .*\(\d{2,}[.\d]* MB\)|Successfully installed", line):
            print("    " + line.strip()[:100], flush=True)
    if process.wait() != 0:
        raise BootstrapError(explain("".join(output)))


def explain(output):
    """
    Args:
        output: what pip printed before it failed.

    Returns:
        one sentence for the user.
    """
    for pattern, sentence in FAILURES:
        match = re.search(pattern, output)
        if match:
            return sentence.format(
                match=match.group(match.lastindex or 0), python=sys.version.split()[0]
            )
    errors = [line for line in output.splitlines() if "error" in line.lower()]
    return "pip failed: {0}".format(last_line("\n".join(errors) or output))


def fingerprint():
    """Hash of the files that decide what is installed."""
    digest = hashlib.sha256()
    for name in ("tools/bootstrap.py", "setup.py", "pyproject.toml"):
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


def run(command, **kwargs):
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, **kwargs
    )


def write_json(path, content):
    with open(path, "w") as f:
        json.dump(content, f)


def read_json(path):
    try:
        with open(path) as f:
            return json.load(f)
    except (OSError, ValueError):
        return None


def last_line(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def say(message):
    print("[{0}] {1}".format(time.strftime("%H:%M:%S"), message), flush=True)


if __name__ == "__main__":
    sys.exit(main())
