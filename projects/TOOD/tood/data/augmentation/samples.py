"""Training images with their objects, as augmentations of several images take and return them."""

from typing import Callable, Dict, List, NamedTuple, Optional, Sequence

import numpy as np
from detectron2.data import DatasetFromList
from detectron2.data import transforms as T

# An object of which less than this share of its area is left is no longer an object: what is seen
# of it becomes background.
MIN_VISIBLE = 0.25


class Sample(NamedTuple):
    """An image at the network's size with its objects, M of them."""

    image: np.ndarray  # (H, W, 3) uint8, in the channel order of INPUT.FORMAT
    gt_boxes: np.ndarray  # (M, 4) float64, XYXY in pixels, inside of the image
    gt_classes: np.ndarray  # (M,) int64
    is_crowd: np.ndarray  # (M,) bool, regions that are not trained on

    def transform(self, transform: T.Transform) -> "Sample":
        """Return the sample after one of Detectron2's transforms, with the boxes of the objects
        that are still visible (``MIN_VISIBLE``), cut to the image.
        """
        boxes = transform.apply_box(self.gt_boxes.copy()).reshape(-1, 4)
        return self.cut(transform.apply_image(self.image), boxes)

    def cut(self, image: np.ndarray, boxes: np.ndarray) -> "Sample":
        """Return a sample of another image.

        Args:
            image: (H', W', 3).
            boxes: (M, 4), those of the objects in it, which may be outside of it.
        """
        clipped = clip_boxes(boxes, image)
        kept = (_areas(clipped) > 0) & (_areas(clipped) >= MIN_VISIBLE * _areas(boxes))
        return Sample(image, clipped[kept], self.gt_classes[kept], self.is_crowd[kept])

    def crop(self, x: int, y: int, width: int, height: int) -> "Sample":
        """Return a part of the sample."""
        sides = self.image.shape[1::-1]
        return self.transform(T.CropTransform(x, y, width, height, *sides))

    def paste(self, part: "Sample", x: int, y: int, alpha: Optional[np.ndarray] = None) -> "Sample":
        """Return the sample with another one in it, whose objects become its objects as well.

        Args:
            part: an image that fits.
            x, y: position of its upper left corner.
            alpha: (h, w) from 0 to 1, opacity of each of its pixels; default: 1.
        """
        image = self.image.copy()
        height, width = part.image.shape[:2]
        window = image[y : y + height, x : x + width]
        if alpha is None:
            window[:] = part.image
        else:
            window[:] = np.rint(window + alpha[..., None] * (part.image.astype(float) - window))
        boxes = part.gt_boxes + np.array([x, y, x, y])
        parts = zip(self[1:], (boxes, *part[2:]))
        return Sample(image, *(np.concatenate(pair) for pair in parts))


def clip_boxes(boxes: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Return the parts of boxes (M, 4), XYXY, that are inside of an image."""
    height, width = image.shape[:2]
    return np.clip(boxes, 0, np.array([width, height, width, height], dtype=float))


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(axis=1)


class TrainingSamples:
    """The training images that an augmentation draws from."""

    def __init__(self, records: Sequence[Dict], load: Callable[[Dict], Sample]):
        """
        Args:
            records: one or more records in Detectron2's format.
            load: maps a record to its sample.
        """
        self._records, self._load = DatasetFromList(list(records)), load
        rows = [
            (i, a["category_id"])
            for i, record in enumerate(records)
            for a in record.get("annotations", ())
            if not a.get("iscrowd", 0)
        ]
        images, classes = np.array(rows, dtype=np.int64).reshape(-1, 2).T
        values, numbers = np.unique(classes, return_counts=True)
        self.num_objects: Dict[int, int] = dict(zip(values.tolist(), numbers.tolist()))
        self._images: Dict[int, np.ndarray] = {k: np.unique(images[classes == k]) for k in values}

    def __len__(self) -> int:
        return len(self._records)

    def draw(self, gt_class: Optional[int] = None) -> Sample:
        """Return a random image, at the network's size, as the augmentations of one image and
        Detectron2's crop, resize and flip make it.

        Args:
            gt_class: a class of ``num_objects``, of which the image has an object, unless a crop
                lost it; default: any image.
        """
        images = self._images[gt_class] if gt_class is not None else None
        number = len(self) if images is None else len(images)
        index = np.random.randint(number)
        return self._load(self._records[int(index if images is None else images[index])])


def make_sample(image: np.ndarray, annotations: List[Dict]) -> Sample:
    """Return the sample of an image and of its annotations in Detectron2's format."""
    from detectron2.structures import BoxMode

    xyxy = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    boxes = np.array(xyxy, dtype=np.float64).reshape(-1, 4)
    classes = np.array([a["category_id"] for a in annotations], dtype=np.int64)
    crowds = np.array([bool(a.get("iscrowd", 0)) for a in annotations], dtype=bool)
    return Sample(image, clip_boxes(boxes, image), classes, crowds)
