"""One frame's context for the encoder layers, made by a tiny transformer from noise."""

import pytest
import torch
from mmdet.models.utils import build_transformer
from tiny_bevformer import (
    BEV_HW,
    CHANNELS,
    image_features,
    make_meta,
    shake_weights,
    transformer_config,
)

from projects.bevformer.model import Frame

QUERIES = BEV_HW[0] * BEV_HW[1]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """A tiny model is faster on one thread than on several that wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def context_maker():
    """A transformer whose weights are noise."""
    torch.manual_seed(0)
    transformer = build_transformer(transformer_config())
    shake_weights(transformer)
    return transformer.requires_grad_(False)


@pytest.fixture
def frame_context(context_maker):
    """Function (samples, has_prev) -> FrameContext; sample b depends on `samples[b]` only."""

    def make(samples=(0,), has_prev=(True,)):
        noise = [
            torch.randn(2, QUERIES, CHANNELS, generator=torch.Generator().manual_seed(sample))
            for sample in samples
        ]
        bev_pos, prev_bev = torch.stack(noise, dim=1)
        bev_queries = torch.randn(*BEV_HW, CHANNELS, generator=torch.Generator().manual_seed(9))
        metas = [make_meta(s, prev_bev_exists=has) for s, has in zip(samples, has_prev)]
        feats = [torch.cat(level) for level in zip(*[image_features(s) for s in samples])]
        frame = Frame.from_metas(metas)
        return context_maker.frame_context(feats, bev_queries, bev_pos, frame, prev_bev)

    return make


@pytest.fixture
def bev_query():
    """Function samples -> (B, Q, C) the queries that enter a layer."""

    def make(samples=(0,)):
        return torch.stack(
            [
                torch.randn(QUERIES, CHANNELS, generator=torch.Generator().manual_seed(7 + sample))
                for sample in samples
            ]
        )

    return make
