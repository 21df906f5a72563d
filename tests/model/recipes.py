"""Recipes of trainings that take seconds and still learn."""

from __future__ import annotations

# The split `train` of a folder with two classes, on crops of 65 pixels.
TWO_CLASSES = """\
dataset = "folder"
split = "train"
iterations = 40
batch_size = 4
learning_rate = 0.1
batch_norm_momentum = 0.1
[model]
backbone = "mobilenet_v2"
depth_multiplier = 0.25
num_classes = 2
output_stride = 32
aspp_channels = 16
decoder_channels = 16
low_level_channels = 8
crop_size = [65, 65]
[augment]
crop = 65
min_scale = 1.0
max_scale = 1.0
"""
