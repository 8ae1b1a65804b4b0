"""Detections of one image in a form for notebooks and scripts."""

import os
import sys
from collections import Counter
from typing import Callable, Dict, List, Optional, Sequence

import numpy as np
from detectron2.structures import Boxes, Instances
from PIL import Image, ImageShow

from tood.utils.errors import UserError
from tood.utils.files import check_image_output, encode_image, write_image


class Result:
    """Detections of one image, the best first; ``len(result)`` is their number."""

    def __init__(
        self,
        instances: Instances,
        class_names: Sequence[str],
        path: str = "",
        read_image: Optional[Callable[[], np.ndarray]] = None,
    ):
        """
        Args:
            instances: Detectron2's, as ``Predictor`` returns them.
            path: path of the image, or "VIDEO#FRAME"; "" for an array.
            read_image: returns the pixels (H, W, 3) uint8, BGR, for drawings.
        """
        self.instances, self.class_names, self.path = instances, list(class_names), path
        self._read_image = read_image

    @property
    def boxes(self) -> List[List[float]]:
        """(D, 4), x1, y1, x2, y2 in pixels of the image."""
        return [_to_numbers(box) for box in self.instances.pred_boxes.tensor.numpy()]

    @property
    def scores(self) -> List[float]:
        """(D,), in descending order."""
        return _to_numbers(self.instances.scores.numpy())

    @property
    def calibrated_scores(self) -> Optional[List[float]]:
        """(D,), the probability that each detection is right; None without a calibration."""
        if not self.instances.has("calibrated_scores"):
            return None
        return _to_numbers(self.instances.calibrated_scores.numpy())

    @property
    def labels(self) -> List[str]:
        """(D,), names of the classes."""
        return [self.class_names[c] for c in self.instances.pred_classes.tolist()]

    def __len__(self) -> int:
        return len(self.instances)

    def __repr__(self) -> str:
        counts = Counter(self.labels).items()
        found = ", ".join(f"{number} {name}" for name, number in counts) or "nothing"
        return f"<{self.path or 'an array'}: {found}>"

    def as_dict(self) -> Dict:
        """Return arrays: "boxes" (D, 4), "scores" (D,), "classes" (D,) and further fields of the
        head, and "names", a list.
        """
        renamed = {"pred_boxes": "boxes", "pred_classes": "classes"}
        arrays = {
            renamed.get(name, name): (x.tensor if isinstance(x, Boxes) else x).numpy()
            for name, x in self.instances.get_fields().items()
        }
        return {**arrays, "names": self.labels}

    def draw(self, image: Optional[np.ndarray] = None) -> np.ndarray:
        """Return the image with its detections, (H, W, 3) uint8, RGB.

        Args:
            image: its pixels (H, W, 3) uint8, BGR, if they are known; default: they are read.

        Raises:
            UserError: for a frame of a video, and an image that cannot be read any more.
        """
        from tood.visualization.draw import draw_boxes  # needs OpenCV and matplotlib

        if image is None and self._read_image is None:
            raise UserError(f"The pixels of {self.path} are not kept; give them to draw().")
        image = self._read_image() if image is None else image
        found = self.as_dict()
        classes, scores = found["classes"].tolist(), found["scores"].tolist()
        return draw_boxes(image[:, :, ::-1], found["boxes"], classes, self.class_names, scores)

    def save(self, path: str, overwrite: bool = False) -> str:
        """Write the drawing to a file, or to a folder under the name of the image.

        Returns:
            the path of the file.

        Raises:
            UserError: for a file that already exists or cannot be written.
        """
        path = os.path.expanduser(os.fspath(path))
        if os.path.isdir(path) or path.endswith(("/", os.sep)):
            path = os.path.join(path, self._name_drawing())
        if os.path.exists(path) and self._is_image(path):
            raise UserError(f"{path} is the image itself; name another file or folder.")
        if os.path.exists(path) and not overwrite:
            raise UserError(f"{path} already exists; name another file, or use overwrite=True.")
        drawing = self.draw()
        check_image_output(path)
        write_image(drawing, path)
        return path

    def _name_drawing(self) -> str:
        stem, suffix = os.path.splitext(os.path.basename(self.path) or "image")
        is_known = suffix.lower() in (".jpg", ".jpeg", ".png")
        return f"{stem}{suffix if is_known else '.png'}"

    def _is_image(self, path: str) -> bool:
        return os.path.exists(self.path) and os.path.samefile(path, self.path)

    def show(self) -> None:
        """Show the drawing: in a notebook below the cell, otherwise in a window.

        Raises:
            UserError: without a screen.
        """
        shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
        if hasattr(shell, "kernel"):  # of a notebook, not of a terminal
            sys.modules["IPython"].display.display(self)
            return
        has_screen = sys.platform in ("win32", "darwin") or any(
            os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
        )
        if not (has_screen and ImageShow.show(Image.fromarray(self.draw()))):
            raise UserError('There is no screen to show it on; use result.save("FILE.png").')

    def _repr_png_(self) -> Optional[bytes]:
        """Return the picture that a notebook shows, if the pixels are known."""
        return encode_image(self.draw(), "PNG") if self._read_image else None

    def to_supervision(self):
        """Return ``supervision.Detections``, with the names of the classes in "class_name".

        Raises:
            UserError: if supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise UserError(
                "The package supervision is missing: pip install supervision"
            ) from error
        found = supervision.Detections.from_detectron2({"instances": self.instances})
        found.data["class_name"] = np.array(self.labels)
        return found


def _to_numbers(x: np.ndarray) -> List[float]:
    """Return the shortest numbers that are equal to float32 in its precision."""
    return [float(str(value)) for value in x]
