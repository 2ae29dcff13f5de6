# The default recipe: BEVFormer-base at BEV 200x200 with the official hyper-parameters. Where the
# official recipe has a quirk (docs/checkpoint_compatibility.md) this one has the correct value.
_base_ = [
    "_base_/bevformer.py",
    "_base_/schedule_24e.py",
    "_base_/default_runtime.py",
]
images_on_device = True
