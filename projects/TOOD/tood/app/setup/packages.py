"""Packages that the project needs beside its own, and their installation: PyTorch, Detectron2,
and OpenCV for drawings. Standard library only.
"""

import shutil
import tempfile
from typing import List, NamedTuple, Sequence

from tood.app.setup.detectron2_wheel import install_detectron2
from tood.app.setup.run_pip import compile_modules, last_line, pip_install, run, say
from tood.utils.errors import UserError

TORCH = ["torch>=2.0", "torchvision>=0.15"]
TORCH_DISK_GB = 8  # CUDA builds, unpacked, with room for pip to unpack them in
TORCH_CHECK = """
import torch, torchvision
torchvision.ops.nms(torch.tensor([[0., 0., 1., 1.]]), torch.tensor([1.]), 0.5)
"""
OPENCV = "opencv-python-headless"


class Need(NamedTuple):
    """A requirement, and whether a Python has it."""

    name: str
    is_there: bool
    text: str  # if it is not


def list_needs(python: str, extras: Sequence[str] = ()) -> List[Need]:
    """
    Args:
        python: path of a Python.
        extras: modules of optional packages, which the project's package names.
    """
    texts = {
        "torch": "from the package index, about 6 GB with CUDA",
        "torchvision": "from the package index",
        "detectron2": "v0.6, as a wheel without its compiled extension, made here",
        "cv2": OPENCV,
    }
    texts.update(dict.fromkeys(extras, "from the package index"))
    return [Need(name, has_module(python, name), text) for name, text in texts.items()]


def install_needs(python: str, folder: str, project: Sequence[str]) -> None:
    """Install everything that a Python lacks. A PyTorch or Detectron2 that is there is kept.

    Args:
        folder: folder for unpacked packages; free space on its disk is checked.
        project: arguments for pip that install the project's package.

    Raises:
        UserError: if a package cannot be installed.
    """
    if not has_module(python, "torch") or not has_module(python, "torchvision"):
        check_disk(folder)
        say("Installing PyTorch (a few minutes; several GB with CUDA) ...")
        pip_install(python, TORCH)
    check_torch(python)
    if has_module(python, "detectron2"):
        say("Keeping the Detectron2 that is there.")
    else:
        install_detectron2(python)
    say("Installing this project and what it draws and tests with ...")
    # cv2 may be there under any of its four package names.
    pip_install(python, [*([] if has_module(python, "cv2") else [OPENCV]), *project])
    limits = list_limits(python)
    if limits:  # by itself: pip would look for versions of all packages that ask for it
        pip_install(python, limits)
    compile_modules(python)


def check_disk(folder: str) -> None:
    """Raise UserError if the disk of a folder has no room for PyTorch."""
    free = shutil.disk_usage(folder).free / 2**30
    if free < TORCH_DISK_GB:
        raise UserError(
            f"PyTorch needs about {TORCH_DISK_GB} GB of disk, and {folder} has {free:.1f} GB free; "
            "free some, or set up on another disk."
        )


def check_torch(python: str) -> None:
    """Raise UserError if torch and torchvision do not work together."""
    done = run([python, "-c", TORCH_CHECK])
    if done.returncode != 0:
        code = "from importlib.metadata import version as v; print('torch', v('torch'), 'and "
        code += "torchvision', v('torchvision'))"
        versions = run([python, "-c", code]).stdout.strip() or "torch and torchvision"
        raise UserError(
            f"{versions} do not go together ({last_line(done.stderr)}); install a pair that "
            f"belongs together, for example with: {python} -m pip install --upgrade torch "
            "torchvision"
        )


def list_limits(python: str) -> List[str]:
    """Return requirements of the PyTorch that is there: versions before 2.3 need NumPy 1."""
    code = "from importlib.metadata import version as v; print(*v('torch').split('.')[:2])"
    try:
        version = tuple(map(int, run([python, "-c", code]).stdout.split()))
    except ValueError:  # one of its developers
        return []
    return ["numpy<2"] if version and version < (2, 3) else []


def has_module(python: str, name: str) -> bool:
    """Return whether a Python finds a module."""
    code = f"import importlib.util as u, sys; sys.exit(u.find_spec({name!r}) is None)"
    # -P is too new: a neutral folder keeps the current one's modules out.
    return run([python, "-c", code], cwd=tempfile.gettempdir()).returncode == 0
