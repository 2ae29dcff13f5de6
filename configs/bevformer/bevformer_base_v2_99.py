# BEVFormer-base with VoVNet V2-99 from DD3D's weights, the backbone of the paper's best results. Neither a
# recipe nor weights of it were published: backbone and image statistics are those of derived projects.
_base_ = ["./bevformer_base.py"]
img_norm_cfg = dict(mean=[103.530, 116.280, 123.675], std=[57.375, 57.120, 58.395], to_rgb=False)
load_from = "ckpts/dd3d_det_final.pth"

model = dict(
    img_backbone=dict(
        _delete_=True,
        type="VoVNet",
        spec_name="V-99-eSE",
        input_ch=3,
        out_features=("stage3", "stage4", "stage5"),
        frozen_stages=1,
        norm_eval=True,
        with_cp=True,  # 11 GiB instead of 24, modelled by benchmarks/memory_model.py
    ),
    img_neck=dict(in_channels=[512, 768, 1024]),
)
