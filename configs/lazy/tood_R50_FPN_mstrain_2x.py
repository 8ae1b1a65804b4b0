from .base import lr_multiplier_2x as lr_multiplier
from .tood_R50_FPN_1x import dataloader, model, optimizer, train

# 24 epochs of 7,330 steps at random sizes.
resize = dataloader.train.mapper.augmentations[0]
resize.short_edge_length = [480, 800]
resize.sample_style = "range"
train.max_iter = 24 * 7330
