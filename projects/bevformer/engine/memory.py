"""GPU memory needed for training.

Figures of benchmarks/memory_model.py, computed and not measured on a GPU: one sample per process, the
queue of the recipe (docs/performance.md). With the published pipelines, whose images are float32,
base needs 0.3 GiB more, which the overhead covers.
"""

from __future__ import annotations

from pathlib import Path

from mmcv import Config

from projects.bevformer.engine.config_files import ConfigFiles
from projects.bevformer.engine.data_loading import train_option

# MiB allocated at the peak, in the order of _SWITCHES; None was not computed.
_SWITCHES = (  # (recomputed encoder, recomputed backbone, mixed precision)
    (False, False, False),
    (True, False, False),
    (False, True, False),
    (True, True, False),
    (True, True, True),
)
_FIGURES = {  # (depth of the ResNet, BEV rows, encoder layers)
    (50, 50, 3): (2_285, 2_156, None, 1_528, 1_266),  # bevformer_tiny
    (101, 150, 3): (None, None, 4_238, 3_111, 2_452),  # bevformer_small
    (101, 50, 6): (10_814, 9_447, None, 4_066, 2_856),  # BEV 50 x 50
    (101, 100, 6): (11_822, 9_603, None, 4_222, 2_962),  # BEV 100 x 100
    (101, 120, 6): (12_414, 9_694, None, 4_313, 3_054),  # bevformer_bev120
    (101, 150, 6): (13_503, 9_863, None, 4_482, 3_222),  # BEV 150 x 150
    (101, 200, 6): (15_856, 10_401, None, 5_020, 3_669),  # config.py, bevformer_base
    (101, 300, 6): (22_578, 12_390, None, 7_008, 5_247),  # BEV 300 x 300
}
TRAINING_MIB = {network: dict(zip(_SWITCHES, row)) for network, row in _FIGURES.items()}
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
    return None if mib is None else mib * train_option(cfg, "samples_per_gpu", 1) + OVERHEAD_MIB


def fitting_recipes(gpu_mib: float) -> dict[str, int]:
    """The recipes of configs/bevformer that can be trained in a GPU's memory.

    Args:
        gpu_mib: all of its memory.

    Returns:
        file name -> expected MiB, the largest first; recipes without a figure are left out.
    """
    folder = Path(__file__).parents[3] / "configs" / "bevformer"
    needs = {
        path.name: training_mib(Config(ConfigFiles(path).evaluate({})))
        for path in sorted(folder.glob("*.py"))
    }
    fitting = {name: need for name, need in needs.items() if need and need <= gpu_mib}
    return dict(sorted(fitting.items(), key=lambda item: -item[1]))
