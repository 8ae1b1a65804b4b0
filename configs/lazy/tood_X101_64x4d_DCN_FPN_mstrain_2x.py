from .tood_X101_64x4d_FPN_mstrain_2x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.deform_on_per_stage = [False, False, True, True]  # c4 and c5
model.head.num_dcn_convs = 2
