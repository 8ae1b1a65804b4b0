# The demo: a small TOOD, from scratch, on drawn shapes. A few minutes on two CPU cores.
from .common.schedule import multi_step
from .tood_R18_GN_small_data import dataloader, model, optimizer, train

model.backbone.out_channels = 64
model.head.conv_dim = 64
model.num_classes = 4
model.atss_iters = 150  # the first third of max_iter

shapes = "output/demo/shapes"
dataloader.train.dataset.names = f"{shapes}/train/annotations.json:{shapes}/train/images"
dataloader.test.dataset.names = f"{shapes}/val/annotations.json:{shapes}/val/images"
dataloader.train.mapper.augmentations[0].short_edge_length = [128]
dataloader.train.mapper.augmentations[0].max_size = 128
dataloader.test.mapper.augmentations[0].short_edge_length = 128
dataloader.test.mapper.augmentations[0].max_size = 128
dataloader.train.total_batch_size = 8
dataloader.train.num_workers = 0  # reading these images is quicker than sharing two cores

optimizer.lr = 0.005  # with 0.01, chance decides when it begins to tell the classes apart
lr_multiplier = multi_step([300, 412, 450], warmup_iters=50)

train.max_iter = 450
train.checkpointer.period = 1000000
train.vis_period = 90
train.output_dir = "./output/demo"
