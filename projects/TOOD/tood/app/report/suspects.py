"""Annotations that a detector disagrees with most: boxes that may be missing, may be of nothing, or
may have the wrong class.
"""

from collections import defaultdict
from typing import Dict, List, NamedTuple, Optional

import numpy as np
from pycocotools import mask as coco_mask

from tood.app.report.matching import Pairs, Table

MISSING, NOTHING_THERE, OTHER_CLASS = "missing", "nothing there", "other class"
# A detection belongs to an object from this IoU on; below the other one, it belongs to none.
SAME_IOU, NEAR_IOU = 0.5, 0.3
# In a report.
NUM_SUSPECTS, LEAST_DOUBT = 30, 0.3


class Suspect(NamedTuple):
    """An annotation to look at, or a box that may lack one."""

    kind: str
    doubt: float  # in [0, 1], the higher the more
    image: int  # index
    bbox: List[float]  # x, y, width, height
    class_index: int  # of the annotation, or of the detection that has none
    reason: str
    annotation: int  # index, -1 for none


def find_suspects(table: Table, pairs: Pairs, most: Optional[int] = None) -> List[Suspect]:
    """
    Args:
        most: maximum number of each kind; default: all.

    Returns:
        sorted by descending doubt. A box may be *missing* if a detection overlaps no object by
        0.3, and the doubt is its score. An object has the *other class* if a detection of
        another one overlaps it by 0.5: the doubt is its score, less that of the best detection of
        the object's own class. *Nothing there*: no detection of any class overlaps by 0.5; the
        doubt is 1 less the score of the best one that overlaps by 0.3, times the share of the
        class's objects that are found: of a class that is hard to see, that says less.
    """
    suspects = _missing(table, pairs, most)
    wrong = sorted(_wrong(table, pairs), key=lambda x: -x.doubt)
    for kind in (NOTHING_THERE, OTHER_CLASS):
        suspects += [x for x in wrong if x.kind == kind][:most]
    return sorted(suspects, key=lambda x: -x.doubt)


def _missing(table: Table, pairs: Pairs, most: Optional[int]) -> List[Suspect]:
    near = np.zeros(len(table.scores))
    np.maximum.at(near, pairs.detections, pairs.ious)
    result, taken = [], defaultdict(list)
    for d in np.argsort(-table.scores, kind="stable").tolist():
        i, box = int(table.images[d]), table.boxes[d].tolist()
        if near[d] >= NEAR_IOU:
            continue
        # One place is reported once, by its most confident detection.
        if taken[i] and coco_mask.iou([box], taken[i], [0] * len(taken[i])).max() >= SAME_IOU:
            continue
        if len(result) == most:
            break
        taken[i].append(box)
        score, k = float(table.scores[d]), int(table.classes[d])
        reason = f"a {table.class_names[k]} of the score {score:.2f} has no annotation"
        result.append(Suspect(MISSING, score, i, box, k, reason, -1))
    return result


def _wrong(table: Table, pairs: Pairs) -> List[Suspect]:
    G, K = len(table.gt_images), len(table.class_names)
    best, near = np.zeros((G, K)), np.zeros(G)
    scores, classes = table.scores[pairs.detections], table.classes[pairs.detections]
    same, close = pairs.ious >= SAME_IOU, pairs.ious >= NEAR_IOU
    np.maximum.at(best, (pairs.objects[same], classes[same]), scores[same])
    np.maximum.at(near, pairs.objects[close], scores[close])
    plain = np.flatnonzero(~table.gt_crowd)
    is_found = (best[plain, table.gt_classes[plain]] > 0).astype(float)
    number = np.bincount(table.gt_classes[plain], minlength=K)
    found = np.bincount(table.gt_classes[plain], is_found, minlength=K)
    recalls = (found + 1) / (number + 1)
    result = []
    for g in plain.tolist():
        k, name = int(table.gt_classes[g]), table.class_names[table.gt_classes[g]]
        other = int(np.where(np.arange(K) == k, -1, best[g]).argmax())
        place = (int(table.gt_images[g]), table.gt_boxes[g].tolist(), k)
        if not best[g].any():
            doubt = (1 - float(near[g])) * float(recalls[k])
            reason = f"no detection overlaps this {name} by {SAME_IOU}"
            result.append(Suspect(NOTHING_THERE, doubt, *place, reason, g))
        elif K > 1 and best[g, other] > best[g, k]:
            doubt = float(best[g, other] - best[g, k])
            reason = (
                f"it looks like {table.class_names[other]} ({best[g, other]:.2f}), not {name} "
                f"({best[g, k]:.2f})"
            )
            result.append(Suspect(OTHER_CLASS, doubt, *place, reason, g))
    return result


def list_suspects(table: Table, pairs: Pairs, thresholds: np.ndarray) -> List[Dict]:
    """Return plain values of the suspects that are worth a look; of missing boxes, those with a
    detection above the threshold of its class.

    Args:
        thresholds: (K,).
    """
    worth = [
        x
        for x in find_suspects(table, pairs, NUM_SUSPECTS)
        if x.doubt >= (thresholds[x.class_index] if x.kind == MISSING else LEAST_DOUBT)
    ]
    return [
        {
            **{"kind": x.kind, "doubt": x.doubt},
            **{"file_name": table.file_names[x.image], "image": x.image},
            **{"class_name": table.class_names[x.class_index], "bbox": x.bbox, "reason": x.reason},
        }
        for x in worth[:NUM_SUSPECTS]
    ]
