_base_ = ["bevformer/bevformer_low_memory.py"]
