# The same with depthwise convolutions in head and FPN, two of them in the head, 96 channels, and
# without P7: a third of the multiply-adds, for CPUs without a GPU.
from .tood_lite0_N_small_data import dataloader, lr_multiplier, model, optimizer, train

model.backbone.out_channels = 96
model.backbone.num_top_levels = 1  # P6 is the coarsest
model.backbone.conv_type = model.head.conv_type = "depthwise"
model.head_in_features = ["p3", "p4", "p5", "p6"]
model.head.strides = [8, 16, 32, 64]
model.head.anchor_generator.sizes = [[64], [128], [256], [512]]
model.head.conv_dim = 96
model.head.num_convs = 2

train.output_dir = "./output/lite0_Pico"
