# The same from stride 4 on, for objects of a dozen pixels.
from .tood_lite0_N_small_data import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.strides = [4, 8, 16, 32]
model.backbone.num_top_levels = 1  # P6 is the coarsest
model.head_in_features = ["p2", "p3", "p4", "p5", "p6"]
model.head.strides = [4, 8, 16, 32, 64]
model.head.anchor_generator.sizes = [[32], [64], [128], [256], [512]]

train.output_dir = "./output/lite0_N_P2"
