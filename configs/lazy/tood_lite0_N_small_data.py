# The same with a head of 128 channels and four layers: a quarter of the multiply-adds, for CPUs.
from .tood_lite0_S_small_data import dataloader, lr_multiplier, model, optimizer, train

model.backbone.out_channels = 128
model.head.conv_dim = 128
model.head.num_convs = 4

train.eval_period = 200
train.output_dir = "./output/lite0_N"
