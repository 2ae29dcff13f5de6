# Logs, checkpoints and processes; the same for every recipe.
checkpoint_config = dict(interval=1)
log_config = dict(
    interval=50,
    hooks=[dict(type="TextLoggerHook"), dict(type="TensorboardLoggerHook")],
)
evaluation = dict(interval=1)
log_level = "INFO"
load_from = None
resume_from = None
workflow = [("train", 1)]
find_unused_parameters = False
# float32 unless a config says fp16 = dict(loss_scale="dynamic", dtype="float16"): mixed precision.
# Memory layout of the convolutions: the same numbers, often faster in mixed precision.
channels_last = False
# TF32 for float32 matrix products and convolutions on GPUs from Ampere on: ten bits of mantissa,
# several times faster. The projection into the cameras never uses it. False: float32 throughout.
tf32 = True
# Backend of deformable attention (docs/performance.md); None chooses by device and installation.
deform_attn_backend = None
# Data workers: forked, one OpenCV thread each.
mp_start_method = "fork"
opencv_num_threads = 0
custom_imports = dict(imports=["projects.bevformer.plugin"], allow_failed_imports=False)
