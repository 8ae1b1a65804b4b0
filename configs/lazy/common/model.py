"""What all TOOD models share: the released settings (arXiv 2108.07755 and the authors' code)."""

from detectron2.config import LazyCall as L
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.modeling.box_regression import Box2BoxTransform

from tood import TOOD, TOODHead
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
    precision_train="float32",
    precision_test="float32",
)
