"""ViT-S below a simple feature pyramid (ViTDet)."""

import torch
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from detectron2.modeling import SimpleFeaturePyramid, ViT

from tood.model_zoo import get_config_file
from tood.modeling.backbone.fpn import LastLevelP6P7NoReLU

_released = LazyConfig.load(get_config_file("tood_R50_FPN_1x.py"))
model, dataloader, train = _released.model, _released.dataloader, _released.train
lr_multiplier = _released.lr_multiplier

model.backbone = L(SimpleFeaturePyramid)(
    net=L(ViT)(
        embed_dim=384,
        depth=12,
        num_heads=6,
        drop_path_rate=0.1,
        window_size=14,
        window_block_indexes=[0, 1, 3, 4, 6, 7, 9, 10],  # global attention in the other four
        use_rel_pos=True,
    ),
    in_feature="last_feat",
    out_channels=256,
    scale_factors=[2.0, 1.0, 0.5],  # strides 8, 16 and 32
    top_block=L(LastLevelP6P7NoReLU)(channels="${..out_channels}"),
)
optimizer = L(torch.optim.AdamW)(params=_released.optimizer.params, lr=1e-4, weight_decay=0.05)
