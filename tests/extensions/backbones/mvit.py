"""MViTv2-T."""

import torch
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from detectron2.modeling import MViT

from tood.model_zoo import get_config_file

_released = LazyConfig.load(get_config_file("tood_R50_FPN_1x.py"))
model, dataloader, train = _released.model, _released.dataloader, _released.train
lr_multiplier = _released.lr_multiplier

model.backbone.bottom_up = L(MViT)(
    embed_dim=96,
    depth=10,
    num_heads=1,
    last_block_indexes=[0, 2, 7, 9],
    residual_pooling=True,
    drop_path_rate=0.2,
    out_features=["scale3", "scale4", "scale5"],
)
optimizer = L(torch.optim.AdamW)(params=_released.optimizer.params, lr=1e-4, weight_decay=0.05)
