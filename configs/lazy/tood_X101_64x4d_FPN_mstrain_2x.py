from .tood_R101_FPN_mstrain_2x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.num_groups = 64
model.backbone.bottom_up.stages.width_per_group = 4
train.init_checkpoint = "open-mmlab://resnext101_64x4d"
