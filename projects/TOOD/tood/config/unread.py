"""Options that are not read: some of Detectron2's never, some not after a training, and some while
another one is off. Setting them is an error or gives a warning.
"""

import logging
import re
from typing import Callable, Dict, Sequence

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY

from tood.config.check import get_key, known_keys
from tood.modeling.assigners import ASSIGNER_REGISTRY
from tood.modeling.dense_head import HEAD_REGISTRY
from tood.modeling.detector import TOOD
from tood.modeling.losses import BOX_REG_LOSS_REGISTRY
from tood.utils.errors import UserError

logger = logging.getLogger(__name__)

# Options, or groups of them.
UNREAD = (
    *("MODEL.ROI_HEADS", "MODEL.ROI_BOX_HEAD", "MODEL.ROI_BOX_CASCADE_HEAD"),
    *("MODEL.ROI_MASK_HEAD", "MODEL.ROI_KEYPOINT_HEAD", "MODEL.SEM_SEG_HEAD"),
    *("MODEL.RPN", "MODEL.PROPOSAL_GENERATOR", "MODEL.PANOPTIC_FPN", "MODEL.RETINANET"),
    *("MODEL.MASK_ON", "MODEL.KEYPOINT_ON", "MODEL.LOAD_PROPOSALS"),
    *("MODEL.ANCHOR_GENERATOR.ANGLES", "INPUT.MASK_FORMAT", "TEST.KEYPOINT_OKS_SIGMAS"),
    *("DATASETS.PROPOSAL_FILES_TRAIN", "DATASETS.PROPOSAL_FILES_TEST"),
    *("DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN", "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST"),
    *("GLOBAL.HACK",),
)
# Options of other detectors' heads that are those of MODEL.TOOD with the same name.
SAME = (
    *("NUM_CLASSES", "SCORE_THRESH_TEST", "NMS_THRESH_TEST", "TOPK_CANDIDATES_TEST"),
    *("PRIOR_PROB", "FOCAL_LOSS_ALPHA", "FOCAL_LOSS_GAMMA", "NUM_CONVS"),
)
# Options that a trained model does not read any more.
OF_TRAININGS = re.compile(
    r"SOLVER\..*|SEED|VIS_PERIOD|TEST\.(EVAL_PERIOD|PRECISE_BN\..*)|INPUT\.TILES\.EMPTY_SHARE"
    r"|INPUT\.(AUGMENTATIONS|CROP\..*|RANDOM_FLIP|M(IN|AX)_SIZE_TRAIN(_SAMPLING)?)"
    r"|DATALOADER\.(SAMPLER_TRAIN|REPEAT_THRESHOLD|FILTER_EMPTY_ANNOTATIONS|RANDOM_SUBSET_RATIO)"
    r"|DATALOADER\.ASPECT_RATIO_GROUPING"
    r"|MODEL\.TOOD\.(CHECKPOINT_BACKBONE|TEACHER(_WEIGHT)?|PRECISION_TRAIN|EMA_DECAY|TRACKER)"
    r"|MODEL\.TOOD\.(EVAL_EMA_ALONE|EARLY_STOP_PATIENCE|MAX_DEAD_ITERS|VAL_LOSS)"
    r"|MODEL\.TOOD\.(FOCAL_LOSS_(ALPHA|GAMMA)|(CLS|BOX_REG)_LOSS_WEIGHT)"
)

# Options that are read only while another one is on.
SWITCHES = {
    r"TEST\.AUG\.(MIN_SIZES|MAX_SIZE|FLIP)": "TEST.AUG.ENABLED",
    r"TEST\.PRECISE_BN\.NUM_ITER": "TEST.PRECISE_BN.ENABLED",
    r"INPUT\.TILES\.(OVERLAP|MIN_VISIBLE|EMPTY_SHARE)": "INPUT.TILES.SIZE",
    r"INPUT\.CROP\.(TYPE|SIZE)": "INPUT.CROP.ENABLED",
    r"SOLVER\.CLIP_GRADIENTS\.(CLIP_TYPE|CLIP_VALUE|NORM_TYPE)": "SOLVER.CLIP_GRADIENTS.ENABLED",
    r"SOLVER\.WARMUP_(FACTOR|METHOD)": "SOLVER.WARMUP_ITERS",
    r"MODEL\.TOOD\.TEACHER_WEIGHT": "MODEL.TOOD.TEACHER",
    r"MODEL\.TOOD\.EVAL_EMA_ALONE": "MODEL.TOOD.EMA_DECAY",
    r"MODEL\.TOOD\.DCN_NUM_GROUPS": "MODEL.TOOD.NUM_DCN_CONVS",
    r"MODEL\.TOOD\.TAL_.*": "MODEL.TOOD.ASSIGNER",
    r"MODEL\.TOOD\.ATSS_TOPK": "MODEL.TOOD.ATSS_ITERS",
    r"MODEL\.TOOD\.BBOX_REG_WEIGHTS": "MODEL.TOOD.ANCHOR_TYPE",
}
# Switches whose own value does not say whether they are on.
IS_ON: Dict[str, Callable[[CfgNode], bool]] = {
    "MODEL.TOOD.ASSIGNER": lambda tood: tood.ASSIGNER == "tal",
    "MODEL.TOOD.ATSS_ITERS": lambda tood: tood.ATSS_ITERS > 0 or tood.ASSIGNER == "atss",
    "MODEL.TOOD.ANCHOR_TYPE": lambda tood: tood.ANCHOR_TYPE == "anchor_based",
}


def check_switches(cfg: CfgNode, keys: Sequence[str], make_before: Callable[[], CfgNode]) -> None:
    """Check that what is typed takes effect.

    Args:
        keys: those that are typed.
        make_before: returns the config without the typed values; these may be repeated.

    Raises:
        UserError: for a value that is read only while another option is on, which is off.
    """
    found = [(key, y) for key in keys for x, y in SWITCHES.items() if re.fullmatch(x, key)]
    found = [(key, switch) for key, switch in found if not _is_on(cfg, switch)]
    if not found or has_parts_of_a_user(cfg):
        return
    before = make_before()
    for key, switch in found:
        if _as_lists(get_key(cfg, key)) != _as_lists(get_key(before, key)):
            raise UserError(
                f"{key} has no effect while {switch} is {get_key(cfg, switch)!r}; set that too, or "
                f"omit {key}."
            )


def _is_on(cfg: CfgNode, switch: str) -> bool:
    return IS_ON[switch](cfg.MODEL.TOOD) if switch in IS_ON else bool(get_key(cfg, switch))


def check_unread(cfg: CfgNode) -> None:
    """Warn of options that have another value than their default, but no effect.

    Raises:
        UserError: for one that TOOD has under another name.
    """
    if has_parts_of_a_user(cfg):  # which may read anything
        return
    defaults = get_cfg()
    for key in known_keys(defaults):
        value, default = get_key(cfg, key), get_key(defaults, key)
        if not key.startswith(UNREAD) or isinstance(default, CfgNode):
            continue
        if _as_lists(value) == _as_lists(default):
            continue
        group, _, name = key.rpartition(".")
        if name in SAME and group in ("MODEL.ROI_HEADS", "MODEL.RETINANET"):
            raise UserError(
                f"{key} is {value!r}, which TOOD never reads; set MODEL.TOOD.{name} instead."
            )
        logger.warning(f"{key} is {value!r}, which has no effect: TOOD never reads it.")


def _as_lists(value):
    """Return tuples as lists, which files contain instead."""
    return [_as_lists(x) for x in value] if isinstance(value, (list, tuple)) else value


def is_tood(cfg: CfgNode) -> bool:
    """Return whether the model is TOOD, or of a registered class that derives from it."""
    known = dict(META_ARCH_REGISTRY)
    return issubclass(known.get(cfg.MODEL.META_ARCHITECTURE, object), TOOD)


def has_parts_of_a_user(cfg: CfgNode) -> bool:
    """Return whether a part of the model is neither this project's nor Detectron2's."""
    tood = cfg.MODEL.TOOD
    parts = [
        *(f for name, f in META_ARCH_REGISTRY if name == cfg.MODEL.META_ARCHITECTURE),
        *(f for name, f in BACKBONE_REGISTRY if name == cfg.MODEL.BACKBONE.NAME),
        *(f for name, f in HEAD_REGISTRY if name == tood.HEAD),
        *(f for name, f in ASSIGNER_REGISTRY if name == tood.ASSIGNER),
        *(f for name, f in BOX_REG_LOSS_REGISTRY if name == tood.BOX_REG_LOSS),
    ]
    return any(not part.__module__.startswith(("tood.", "detectron2.")) for part in parts)
