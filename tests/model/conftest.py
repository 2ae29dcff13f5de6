"""One frame's context for the encoder layers, filled with noise."""

import numpy as np
import pytest
import torch
from einops import rearrange
from tiny_bevformer import BEV_HW, CHANNELS, IMAGE_HW, PC_RANGE, image_features, make_meta

from projects.bevformer.geometry.bev_grid import cell_centres, pillar_points
from projects.bevformer.model.bev_encoder.context import CameraHits, FrameContext

NUM_HEIGHTS = 2


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """A tiny model is faster on one thread than on several that wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def frame_context():
    """Function (samples, has_history) -> FrameContext; sample b depends on `samples[b]` alone."""

    def make(samples=(0,), has_history=(True,)):
        queries = BEV_HW[0] * BEV_HW[1]
        noise = [
            torch.randn(3, queries, CHANNELS, generator=torch.Generator().manual_seed(sample))
            for sample in samples
        ]
        bev_pos, history, initial_query = torch.stack(noise, dim=1)
        metas = [make_meta(sample) for sample in samples]
        lidar2img = torch.from_numpy(np.stack([np.stack(meta["lidar2img"]) for meta in metas]))
        shift = torch.tensor([[0.13 * (sample + 1), -0.07] for sample in samples])
        has_history = torch.tensor(has_history)
        temporal_pair = torch.stack((history, initial_query), dim=1)
        centres = cell_centres(*BEV_HW).expand(len(samples), -1, -1)
        moved = centres + (shift * has_history[:, None])[:, None]
        levels = [
            torch.cat([image_features(sample)[level] for sample in samples]) for level in range(2)
        ]
        return FrameContext(
            bev_hw=BEV_HW,
            bev_pos=bev_pos,
            initial_query=initial_query,
            temporal_pair=temporal_pair if has_history.any() else None,
            has_history=None if has_history.all() or not has_history.any() else has_history,
            reference_bev=torch.stack((moved, centres), dim=1),
            hits=CameraHits.project(
                pillar_points(*BEV_HW, NUM_HEIGHTS, PC_RANGE), [lidar2img], [IMAGE_HW]
            )[0],
            image_features=torch.cat(
                [rearrange(level, "b n c h w -> b n (h w) c") for level in levels], dim=2
            ),
            image_shapes=[tuple(level.shape[-2:]) for level in levels],
        )

    return make


@pytest.fixture
def bev_query():
    """Function samples -> (B, Q, C) the queries that enter a layer."""

    def make(samples=(0,)):
        queries = BEV_HW[0] * BEV_HW[1]
        return torch.stack(
            [
                torch.randn(queries, CHANNELS, generator=torch.Generator().manual_seed(7 + sample))
                for sample in samples
            ]
        )

    return make
