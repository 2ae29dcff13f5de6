"""What training needs of a GPU's memory.

Figures were computed with a model of tensor lifetimes, not measured on a GPU: batch 1 a process, queue
of the recipe, float32, attention by grid_sample.
"""

# (depth of the ResNet, BEV rows, encoder layers, recomputed backbone) -> MiB allocated at the peak.
TRAINING_MIB = {
    (50, 50, 3, False): 3_184,  # bevformer_tiny
    (101, 150, 3, True): 7_669,  # bevformer_small
    (101, 50, 6, False): 18_801,
    (101, 100, 6, False): 22_954,
    (101, 120, 6, False): 25_393,  # config_bev120
    (101, 150, 6, False): 29_878,
    (101, 200, 6, False): 39_553,  # config.py, bevformer_base
    (101, 300, 6, False): 67_220,
}
# Gradient buffers, the CUDA context and what the allocator keeps.
OVERHEAD_MIB = 1_536


def training_mib(cfg):
    """GPU memory that training a config needs.

    Args:
        cfg: config of a BEVFormer.

    Returns:
        MiB for one process, or None where no figure is known for such a network.
    """
    model = cfg.model
    backbone, head = model.img_backbone, model.pts_bbox_head
    key = (
        backbone.get("depth"),
        head.bev_h,
        head.transformer.encoder.num_layers,
        bool(backbone.get("with_cp", False)),
    )
    if key not in TRAINING_MIB:
        return None
    return TRAINING_MIB[key] * cfg.data.get("samples_per_gpu", 1) + OVERHEAD_MIB
