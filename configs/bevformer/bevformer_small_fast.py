# BEVFormer-small as published, with the images distorted, normalised, scaled and padded by the
# model on its device: the data workers pass uint8 images and need a fifth of the time. The same
# weights fit, and the input of the network is that of bevformer_small.py within rounding
# (tests/integration/test_fast_configs.py).
_base_ = ["./bevformer_small.py"]
images_on_device = True
