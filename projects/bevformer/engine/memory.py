"""GPU memory needed for training.

Figures of benchmarks/memory_model.py, computed and not measured on a GPU: one sample a process, the
queue of the recipe (docs/performance.md). With the published pipelines, whose images are float32, base
needs 0.3 GiB more, which the overhead covers.
"""

from __future__ import annotations

from mmcv import Config

# (depth of the ResNet, BEV rows, encoder layers) -> {(recomputed encoder, recomputed backbone,
# mixed precision): MiB allocated at the peak}.
TRAINING_MIB = {
    (50, 50, 3): {  # bevformer_tiny
        (False, False, False): 2_285,
        (True, False, False): 2_156,
        (True, True, False): 1_528,
        (True, True, True): 1_266,
    },
    (101, 150, 3): {  # bevformer_small
        (False, True, False): 4_238,
        (True, True, False): 3_111,
        (True, True, True): 2_452,
    },
    (101, 50, 6): {  # BEV 50 x 50
        (False, False, False): 10_814,
        (True, False, False): 9_447,
        (True, True, False): 4_066,
        (True, True, True): 2_856,
    },
    (101, 100, 6): {  # BEV 100 x 100
        (False, False, False): 11_822,
        (True, False, False): 9_603,
        (True, True, False): 4_222,
        (True, True, True): 2_962,
    },
    (101, 120, 6): {  # bevformer_bev120
        (False, False, False): 12_414,
        (True, False, False): 9_694,
        (True, True, False): 4_313,
        (True, True, True): 3_054,
    },
    (101, 150, 6): {  # BEV 150 x 150
        (False, False, False): 13_503,
        (True, False, False): 9_863,
        (True, True, False): 4_482,
        (True, True, True): 3_222,
    },
    (101, 200, 6): {  # config.py, bevformer_base
        (False, False, False): 15_856,
        (True, False, False): 10_401,
        (True, True, False): 5_020,
        (True, True, True): 3_669,
    },
    (101, 300, 6): {  # BEV 300 x 300
        (False, False, False): 22_578,
        (True, False, False): 12_390,
        (True, True, False): 7_008,
        (True, True, True): 5_247,
    },
}
# The CUDA context, workspaces, what the allocator keeps, and the buckets of several processes.
OVERHEAD_MIB = 2_048


def training_mib(cfg: Config) -> int | None:
    """GPU memory that training a config needs.

    Args:
        cfg: config of a network with a BEV.

    Returns:
        MiB for one process, or None where no figure is known for such a network.
    """
    try:
        backbone, head = cfg.model.img_backbone, cfg.model.pts_bbox_head
        encoder = head.transformer.encoder
        network = backbone.get("depth"), head.bev_h, encoder.num_layers
    except (KeyError, AttributeError):
        return None
    switches = (
        bool(encoder.get("with_cp", False)),
        bool(backbone.get("with_cp", False)),
        bool(cfg.get("fp16")),
    )
    mib = TRAINING_MIB.get(network, {}).get(switches)
    return None if mib is None else mib * cfg.data.get("samples_per_gpu", 1) + OVERHEAD_MIB
