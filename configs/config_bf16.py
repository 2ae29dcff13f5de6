_base_ = ["bevformer/bevformer_bf16.py"]
