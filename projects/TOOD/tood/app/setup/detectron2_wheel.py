"""A pure-Python wheel of Detectron2 v0.6, from the source distribution on the package index, with
the edits that today's libraries need. Standard library only; docs/setup.md has the reasons.
"""

import os
import re
import tarfile
import tempfile
from typing import Sequence, Tuple

from tood.app.setup.run_pip import pip_install, run, run_pip, say
from tood.utils.errors import UserError

# Detectron2's own Python files of tag v0.6, packaged by somebody without its C++ sources.
SDIST = "pb1-detectron2==0.6"
SDIST_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
WHEEL_VERSION = "0.6+compat"
# Not part of Detectron2's package: trains the configs in configs/lazy, docs/training.md.
SCRIPT = "tools/lazyconfig_train_net.py"
NEWEST_PIP_FOR_SDIST = "pip<26.1"  # later ones refuse the URL in one of its unused extras

# The requirements of Detectron2 v0.6, without those of its exporters and developers.
REQUIRES = (
    "Pillow>=7.1 matplotlib pycocotools>=2.0.2 termcolor>=1.1 yacs>=0.1.8 tabulate cloudpickle "
    "tqdm>4.29.0 tensorboard fvcore>=0.1.5,<0.1.6 iopath>=0.1.7,<0.1.10 omegaconf>=2.1,<2.4 "
    "hydra-core>=1.1"
)

SETUP = """
from setuptools import find_packages, setup

setup(
    name="detectron2",
    version={version!r},
    license="Apache-2.0",
    description="Detectron2 v0.6, pure Python, with compatibility edits",
    packages=find_packages(include=["detectron2*"]),
    package_data={{"detectron2.model_zoo": ["configs/**/*.yaml", "configs/**/*.py"]}},
    scripts=[{script!r}],
    python_requires=">=3.9",
    install_requires={requires!r},
)
"""

_OPTIONAL_EXTENSION = (
    "from detectron2 import _C\n",
    "try:\n    from detectron2 import _C\nexcept ImportError:  # built without the extension\n"
    "    _C = None\n",
)
_NUMPY_ALIASES = (re.compile(r"\bnp\.(bool|int|float)\b"), r"\1")

# (file, what it says, what it says afterwards, how often): the lines of v0.6 that break without
# the extension or with today's libraries. Detectron2's main branch has changed all of them in the
# same way but pkg_resources, which it still imports.
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
    # Since PyTorch 2.0 its schedulers are not instances of _LRScheduler, and were not saved.
    (
        "engine/hooks.py",
        "torch.optim.lr_scheduler._LRScheduler",
        'getattr(torch.optim.lr_scheduler, "LRScheduler", None)',
        2,
    ),
]


def install_detectron2(python: str) -> None:
    """Make the wheel, and install it for a Python."""
    say("Making a pure-Python wheel of Detectron2 v0.6 ...")
    pip_install(python, ["setuptools>=70.1", "wheel"])
    with tempfile.TemporaryDirectory() as tmp:
        source = unpack(download_sdist(python, tmp), os.path.join(tmp, "source"))
        apply_edits(os.path.join(source, "detectron2"), EDITS)
        wheel = build_wheel(python, source, os.path.join(tmp, "wheel"))
        say(f"Installing {os.path.basename(wheel)} and what it needs ...")
        pip_install(python, [wheel])


def download_sdist(python: str, folder: str) -> str:
    """Return the path of the archive; pip checks its hash before it runs its code."""
    requirements = os.path.join(folder, "requirements.txt")
    with open(requirements, "w") as f:
        f.write(f"{SDIST} --hash=sha256:{SDIST_SHA256}\n")
    command = ["download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    run_pip([*pip_for_sdist(python, folder), *command, "-r", requirements, "-d", folder])
    (archive,) = [name for name in os.listdir(folder) if name.endswith(".tar.gz")]
    return os.path.join(folder, archive)


def pip_for_sdist(python: str, folder: str):
    """Return the command of a pip that still downloads the source distribution."""
    version = run([python, "-m", "pip", "--version"]).stdout.split()[1]
    if tuple(int(n) for n in re.findall(r"\d+", version)[:2]) < (26, 1):
        return [python, "-m", "pip"]
    target = os.path.join(folder, "pip")
    pip_install(python, ["--target", target, NEWEST_PIP_FOR_SDIST])
    return [python, os.path.join(target, "pip")]


def unpack(archive: str, folder: str) -> str:
    """Return the path of the one folder at the top of the archive."""
    with tarfile.open(archive) as tar:
        # Pythons without the filter trust the archive, whose hash is known.
        options = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        tar.extractall(folder, **options)
    (top,) = os.listdir(folder)
    return os.path.join(folder, top)


def apply_edits(package: str, edits: Sequence[Tuple]) -> None:
    """Apply edits like ``EDITS`` to a package's folder; raise UserError if one fails."""
    for name, old, new, expected in edits:
        path = os.path.join(package, *name.split("/"))
        with open(path, encoding="utf-8") as f:
            text = f.read()
        if isinstance(old, str):
            text, count = text.replace(old, new), text.count(old)
        else:
            text, count = old.subn(new, text)
        if count != expected:
            raise UserError(
                f"Detectron2's {name} has {old!r} {count} times instead of {expected}: this is not "
                "the v0.6 that the compatibility edits are made for."
            )
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)


def build_wheel(python: str, source: str, folder: str) -> str:
    """Return the path of a wheel of Detectron2 without its extension, whose version says so."""
    for name in ("setup.cfg", "pyproject.toml"):
        if os.path.exists(os.path.join(source, name)):
            os.remove(os.path.join(source, name))
    with open(os.path.join(source, "setup.py"), "w") as f:
        f.write(SETUP.format(version=WHEEL_VERSION, script=SCRIPT, requires=REQUIRES.split()))
    run_pip(
        [python, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source]
    )
    (wheel,) = os.listdir(folder)
    return os.path.join(folder, wheel)
