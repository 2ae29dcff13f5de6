# The default recipe in bfloat16 and in the least memory: encoder and backbone are recomputed in
# the backward pass. bfloat16 needs no loss scale. Numbers: docs/performance.md
_base_ = ["./bevformer_low_memory.py"]
model = dict(img_backbone=dict(with_cp=True))
fp16 = dict(dtype="bfloat16")
