# BEVFormer-S, the model without history, at the size of small: single frames in training, no memory
# in tests. Temporal self-attention becomes deformable self-attention of the BEV queries.
_base_ = ["./bevformer_small.py"]
queue_length = 1
model = dict(video_test_mode=False)
