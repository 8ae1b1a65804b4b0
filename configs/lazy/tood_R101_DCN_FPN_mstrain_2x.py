from .tood_R101_FPN_mstrain_2x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.deform_on_per_stage = [False, True, True, True]  # c3 to c5
model.head.num_dcn_convs = 2
