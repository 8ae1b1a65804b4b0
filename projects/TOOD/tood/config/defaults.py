"""The options of TOOD: those under ``cfg.MODEL.TOOD``, ``cfg.MODEL.TIMM`` and ``cfg.INPUT.TILES``,
and ``SOLVER.CHECKPOINT_KEEP``.
"""

from detectron2.config import CfgNode as CN

import tood.modeling.detector  # noqa: F401  (registers the architecture of these options)
from tood.config.options import add_training_keys


def add_tood_config(cfg):
    """Add every TOOD option, with its released value, to a Detectron2 config.

    Args:
        cfg (CfgNode): as returned by :func:`detectron2.config.get_cfg`; changed in place.
    """
    cfg.MODEL.TOOD = CN()
    tood = cfg.MODEL.TOOD

    # Number of object classes. No other key sets it.
    tood.NUM_CLASSES = 80
    # Feature maps that the head reads, from the finest to the coarsest.
    tood.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    # How a location turns four numbers into a box: "anchor_free" (distances to the four sides
    # in units of the stride) or "anchor_based" (deltas of its anchor).
    tood.ANCHOR_TYPE = "anchor_free"
    # Weights of the deltas (dx, dy, dw, dh) of "anchor_based": the inverse of their stds.
    tood.BBOX_REG_WEIGHTS = (10.0, 10.0, 5.0, 5.0)

    # "task_aligned" (T-head), or "parallel": a tower of convolutions for each task, as in ATSS.
    tood.HEAD = "task_aligned"
    # Whether scores are corrected by the map M (Eq. 5), and boxes by the offsets O (Eq. 6).
    tood.ALIGN_CLS = True
    tood.ALIGN_BOX = True
    # Learn the centerness, and rank detections by it; for the parallel head with ATSS throughout.
    tood.CENTERNESS = False
    # Number of stacked convolutions (N of Eq. 1; of each tower in the parallel head), their
    # channels and norm, and the score that every class starts with.
    tood.NUM_CONVS = 6
    tood.CONV_DIM = 256
    tood.NORM = "GN"
    tood.PRIOR_PROB = 0.01
    # Stacked convolutions, both predictors, and the FPN of this project's backbones: "plain", 3x3,
    # or "depthwise", 5 x 5 of each channel and then 1x1, for CPUs.
    tood.CONV_TYPE = "plain"
    # How many of the first convolutions are deformable (DCNv2), and their groups.
    tood.NUM_DCN_CONVS = 0
    tood.DCN_NUM_GROUPS = 4

    # "tal": task alignment learning; "atss"; or a name in ASSIGNER_REGISTRY.
    tood.ASSIGNER = "tal"
    # The first ATSS_ITERS iterations assign by ATSS, those after it by ASSIGNER; 0 turns ATSS off.
    # Released: 4 epochs, also when training takes 24.
    tood.ATSS_ITERS = 29320
    # ATSS: candidates of each object on each level.
    tood.ATSS_TOPK = 9
    # TAL: candidates of each object (m), and the exponents of score and IoU in the alignment
    # metric t = s^ALPHA * u^BETA (Eq. 9).
    tood.TAL_TOPK = 13
    tood.TAL_ALPHA = 1.0
    tood.TAL_BETA = 6.0

    # Classification loss: the exponent of |target - score| in both phases (Eq. 10, 11), and the
    # weight of positives in the focal loss of the warm-up.
    tood.FOCAL_LOSS_GAMMA = 2.0
    tood.FOCAL_LOSS_ALPHA = 0.25
    # Box loss: "giou", or a name in BOX_REG_LOSS_REGISTRY.
    tood.BOX_REG_LOSS = "giou"
    # Weights of the two losses in their sum.
    tood.CLS_LOSS_WEIGHT = 1.0
    tood.BOX_REG_LOSS_WEIGHT = 2.0

    # Keep the running statistics of the backbone's batch norms while training; their weights and
    # biases are trained. No effect on other norms.
    tood.FREEZE_BN_STATS = True
    # Keep the input of each block of the backbone alone and compute the block again in the backward
    # pass: less memory, a longer step.
    tood.CHECKPOINT_BACKBONE = False

    # Inference: score threshold, candidates per level, and NMS. The number of detections per
    # image is TEST.DETECTIONS_PER_IMAGE.
    tood.SCORE_THRESH_TEST = 0.05
    tood.TOPK_CANDIDATES_TEST = 1000
    tood.NMS_THRESH_TEST = 0.6
    # NMS between classes as well: one box where two classes are found.
    tood.CLASS_AGNOSTIC_NMS = False

    # Those of the training loop, with a comment each.
    add_training_keys(tood)

    # Compute dtype in training and at inference: "float32", "bfloat16" or
    # "float16", the latter two by autocast, and float16 with scaled gradients, on a GPU only.
    # Weights, assignment, losses, scores, boxes and NMS are float32 always. SOLVER.AMP.ENABLED
    # True is PRECISION_TRAIN "float16" on a GPU and "bfloat16" on a CPU.
    tood.PRECISION_TRAIN = "float32"
    tood.PRECISION_TEST = "float32"

    # MODEL.BACKBONE.NAME "build_timm_fpn_backbone": a model of timm with maps of strides 4 to 32.
    # Unless they are typed, PIXEL_MEAN, PIXEL_STD and INPUT.FORMAT are those it was trained with.
    cfg.MODEL.TIMM = CN()
    cfg.MODEL.TIMM.NAME = ""
    # Start from timm's weights, which are fetched, where MODEL.WEIGHTS is "".
    cfg.MODEL.TIMM.PRETRAINED = False
    # Maps, as timm counts them; (): the deepest of each stride.
    cfg.MODEL.TIMM.OUT_INDICES = ()
    # Stages from the first that are not trained, and the rate of stochastic depth.
    cfg.MODEL.TIMM.FREEZE_AT = 0
    cfg.MODEL.TIMM.DROP_PATH = 0.0

    # Large images in tiles, in training and at inference: their side in pixels of the image (0:
    # images stay whole), and how many of them neighbours share at least, which should be more than
    # the size of a small object. Tiles are then resized as whole images are.
    cfg.INPUT.TILES = CN()
    cfg.INPUT.TILES.SIZE = 0
    cfg.INPUT.TILES.OVERLAP = 0
    # Training: how much of an object's area a tile must show for it to be one of its objects, and
    # how many tiles without objects there are for each tile with objects.
    cfg.INPUT.TILES.MIN_VISIBLE = 0.5
    cfg.INPUT.TILES.EMPTY_SHARE = 0.2

    # Augmentations of training images beside Detectron2's crop, resize and flip: names in
    # AUGMENTATION_REGISTRY, docs/augmentations.md. Of one kind they come in this order.
    cfg.INPUT.AUGMENTATIONS = []

    # Bits that images of more than 8 bits use, for example 12: the upper eight of them are kept.
    cfg.INPUT.BIT_DEPTH = 16

    # How many of the checkpoints that SOLVER.CHECKPOINT_PERIOD makes are kept, the newest ones;
    # 0: all. The final and the best weights are separate files.
    cfg.SOLVER.CHECKPOINT_KEEP = 0

    # Keys of earlier versions: an error with the new name, and a warning.
    cfg.register_renamed_key("MODEL.TOOD.WARMUP_ITERS", "MODEL.TOOD.ATSS_ITERS")
    cfg.register_deprecated_key("MODEL.TOOD.REPORT")
