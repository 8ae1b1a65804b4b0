# A few hundred photographs, from scratch; docs/results/small_data.md has what it reached.
# docs/training.md has a config for custom data that is based on this one.
from tood.engine.optimizer import clipped_sgd

from .base import dataloader, model, multi_step, optimizer, train

model.backbone.bottom_up.freeze_at = 0  # nothing is pretrained, so nothing is frozen
model.backbone.bottom_up.stages.depth = 18
model.backbone.bottom_up.stages.norm = "GN"  # batches are too small for batch norm
model.atss_iters = 267  # the first third of max_iter, as in the released schedule

dataloader.train.dataset.names = []  # registered data sets
dataloader.test.dataset.names = []
# Half the size of a 640 x 480 photograph.
dataloader.train.mapper.augmentations[0].short_edge_length = [240]
dataloader.train.mapper.augmentations[0].max_size = 320
dataloader.test.mapper.augmentations[0].short_edge_length = 240
dataloader.test.mapper.augmentations[0].max_size = 320
dataloader.train.total_batch_size = 4
dataloader.train.num_workers = 2

# The norm of each parameter's gradient is bounded: docs/training.md, "When nothing is learned".
optimizer._target_ = clipped_sgd
optimizer.max_norm = 1.0
optimizer.each = True
# 8/12 and 11/12 of max_iter, as in the released schedule.
lr_multiplier = multi_step([533, 733, 800], warmup_iters=100)

train.max_iter = 800  # about 16 epochs of 200 images: 800 * 4 / 200
train.checkpointer.period = 400
train.checkpointer.max_to_keep = 2
train.seed = 1
train.output_dir = "./output/small_data"
