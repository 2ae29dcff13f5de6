"""What training needs of a GPU's memory.

Figures of benchmarks/memory_model.py, computed and not measured on a GPU: one sample a process, the
queue of the recipe (docs/performance.md).
"""

# (depth of the ResNet, BEV rows, encoder layers) -> {(recomputed encoder, recomputed backbone,
# mixed precision): MiB allocated at the peak}.
TRAINING_MIB = {
TABLE
}
# The CUDA context, workspaces, what the allocator keeps, and the buckets of several processes.
OVERHEAD_MIB = 2_048


def training_mib(cfg):
    """GPU memory that training a config needs.

    Args:
        cfg: config of a BEVFormer.

    Returns:
        MiB for one process, or None where no figure is known for such a network.
    """
    backbone, head = cfg.model.img_backbone, cfg.model.pts_bbox_head
    encoder = head.transformer.encoder
    switches = (
        bool(encoder.get("with_cp", False)),
        bool(backbone.get("with_cp", False)),
        bool(cfg.get("fp16")),
    )
    network = backbone.get("depth"), head.bev_h, encoder.num_layers
    mib = TRAINING_MIB.get(network, {}).get(switches)
    return None if mib is None else mib * cfg.data.get("samples_per_gpu", 1) + OVERHEAD_MIB
