from .base import dataloader, model, optimizer, train
from .base import lr_multiplier_1x as lr_multiplier

train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
