_base_ = ["bevformer/bevformer_bev120.py"]
