"""Released settings of all TOOD models (arXiv 2108.07755 and the authors' code), for Detectron2's
``tools/lazyconfig_train_net.py`` (docs/training.md).
"""

import detectron2.data.transforms as T
import torch
from detectron2.config import LazyCall as L
from detectron2.data import (
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.solver import WarmupParamScheduler, get_default_optimizer_params
from fvcore.common.param_scheduler import MultiStepParamScheduler

import tood.checkpoint.weights  # noqa: F401  (registers the names of weights)
from tood import TOOD, TOODHead
from tood.data.mapper import CheckedMapper
from tood.evaluation.coco import CleanCOCOEvaluator
from tood.modeling.assigners import ATSS, TAL
from tood.modeling.backbone.fpn import make_resnet_stages, make_tood_fpn

model = L(TOOD)(
    backbone=L(make_tood_fpn)(
        bottom_up=L(ResNet)(
            stem=L(BasicStem)(in_channels=3, out_channels=64, norm="${..stages.norm}"),
            stages=L(make_resnet_stages)(
                depth=50,
                norm="BN",  # statistics frozen by freeze_bn_stats, affine weights trained
                stride_in_1x1=False,
                num_groups=1,
                width_per_group=64,
                deform_on_per_stage=[False, False, False, False],
                deform_modulated=True,
                deform_num_groups=1,
            ),
            out_features=["res3", "res4", "res5"],
            freeze_at=2,  # the stem and the first stage
        ),
        in_features="${.bottom_up.out_features}",
        out_channels=256,
        norm="",
        fuse_type="sum",
        conv_type="plain",
    ),
    head=L(TOODHead)(
        in_channels="${..backbone.out_channels}",
        num_classes="${..num_classes}",
        strides=[8, 16, 32, 64, 128],
        # One square anchor of 8 strides at every location, centred at i * stride.
        anchor_generator=L(DefaultAnchorGenerator)(
            sizes=[[64], [128], [256], [512], [1024]],
            aspect_ratios=[[1.0]],
            strides="${..strides}",
            offset=0.0,
        ),
        anchor_type="anchor_free",
        box2box_transform=L(Box2BoxTransform)(weights=[10.0, 10.0, 5.0, 5.0]),
        num_convs=6,
        conv_dim=256,
        norm="GN",
        num_dcn_convs=0,
        dcn_num_groups=4,
        align_cls=True,
        align_box=True,
        prior_prob=0.01,
        conv_type="plain",
    ),
    head_in_features=["p3", "p4", "p5", "p6", "p7"],
    num_classes=80,
    # Pixel format, mean and std of torchvision's ResNets.
    input_format="RGB",
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
    assigner=L(TAL)(topk=13, alpha=1.0, beta=6.0),
    # Iterations of ATSS before TAL: 4 epochs of 7,330 steps, also when training takes 24.
    warmup_assigner=L(ATSS)(topk=9, focal_loss_alpha=0.25),
    atss_iters=29320,
    focal_loss_gamma=2.0,
    cls_loss_weight=1.0,
    box_reg_loss_weight=2.0,
    freeze_bn_stats=True,
    checkpoint_backbone=False,
    score_thresh_test=0.05,
    topk_candidates_test=1000,
    nms_thresh_test=0.6,
    class_agnostic_nms=False,
    max_detections_per_image=100,
)

dataloader = dict(
    train=L(build_detection_train_loader)(
        dataset=L(get_detection_dataset_dicts)(names="coco_2017_train", filter_empty=True),
        mapper=L(CheckedMapper)(
            is_train=True,
            augmentations=[
                L(T.ResizeShortestEdge)(
                    short_edge_length=[800], max_size=1333, sample_style="choice"
                ),
                L(T.RandomFlip)(horizontal=True),
            ],
            image_format="RGB",  # model.input_format
        ),
        total_batch_size=16,
        aspect_ratio_grouping=True,
        num_workers=4,
    ),
    test=L(build_detection_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names="coco_2017_val", filter_empty=False),
        mapper=L(CheckedMapper)(
            is_train=False,
            augmentations=[
                L(T.ResizeShortestEdge)(
                    short_edge_length=800, max_size=1333, sample_style="choice"
                ),
            ],
            image_format="${...train.mapper.image_format}",
        ),
        num_workers="${..train.num_workers}",
    ),
    evaluator=L(CleanCOCOEvaluator)(
        dataset_name="${..test.dataset.names}",
    ),
)

optimizer = L(torch.optim.SGD)(
    params=L(get_default_optimizer_params)(
        # lazyconfig_train_net.py sets "model".
        base_lr="${..lr}",
        weight_decay_norm="${..weight_decay}",  # on every parameter, norms too
    ),
    lr=0.01,
    momentum=0.9,
    weight_decay=0.0001,
)


def multi_step(milestones, warmup_iters):
    """Return the factor of the learning rate over a training. Warm-up and steps are shares of it:
    another ``train.max_iter`` moves them.

    Args:
        milestones: iterations of the steps, each to a tenth, and of the end.
        warmup_iters: number of warmup iterations.
    """
    return L(WarmupParamScheduler)(
        scheduler=L(MultiStepParamScheduler)(
            values=[0.1**i for i in range(len(milestones))], milestones=milestones
        ),
        warmup_factor=0.001,
        warmup_length=warmup_iters / milestones[-1],
        warmup_method="linear",
    )


# Epochs of 7,330 steps of 16 images: COCO train2017 has 117,266 images with objects.
lr_multiplier_1x = multi_step([8 * 7330, 11 * 7330, 12 * 7330], warmup_iters=500)
lr_multiplier_2x = multi_step([16 * 7330, 22 * 7330, 24 * 7330], warmup_iters=500)

# Periods are in iterations.
train = dict(
    output_dir="./output",
    init_checkpoint="",
    max_iter=87960,  # 12 epochs of 7,330 steps
    amp=dict(enabled=False),
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),
    checkpointer=dict(period=5000, max_to_keep=None),
    eval_period=0,
    log_period=20,
    device="cuda",
    seed=-1,  # drawn
)
