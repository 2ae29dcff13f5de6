_base_ = ["bevformer/bevformer_mini.py"]
