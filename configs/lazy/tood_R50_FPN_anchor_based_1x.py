from .tood_R50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model.head.anchor_type = "anchor_based"
