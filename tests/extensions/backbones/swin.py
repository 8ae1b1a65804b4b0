"""Swin-T."""

import torch
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from detectron2.modeling import SwinTransformer

from tood.model_zoo import get_config_file

_released = LazyConfig.load(get_config_file("tood_R50_FPN_1x.py"))
model, dataloader, train = _released.model, _released.dataloader, _released.train
lr_multiplier = _released.lr_multiplier

model.backbone.bottom_up = L(SwinTransformer)(
    embed_dim=96,
    depths=[2, 2, 6, 2],
    num_heads=[3, 6, 12, 24],
    drop_path_rate=0.2,
    out_indices=[1, 2, 3],
)
model.backbone.in_features = ["p1", "p2", "p3"]  # Swin's names for strides 8, 16 and 32
optimizer = L(torch.optim.AdamW)(params=_released.optimizer.params, lr=1e-4, weight_decay=0.05)
