"""A second head on the BEV from outside the package learns and predicts along with detection."""

import pytest
import torch
import torch.nn.functional as F
from mmdet.models.builder import HEADS
from tiny_bevformer import BEV_HW, CHANNELS, build_detector, inference_batch, training_batch
from torch import nn

from projects.bevformer.engine.training_model import total_loss
from projects.bevformer.model import BEVHead

QUERIES = BEV_HW[0] * BEV_HW[1]


@HEADS.register_module()
class OccupancyHead(BEVHead):
    """Whether something stands on a cell."""

    def __init__(self, channels, init_cfg=None):
        super().__init__(init_cfg)
        self.logits = nn.Linear(channels, 1)

    def forward(self, bev):
        return self.logits(bev)[..., 0]

    def loss(self, outputs, metas, targets):
        occupied = targets["gt_occupied"]
        loss = F.binary_cross_entropy_with_logits(outputs, occupied)
        return dict(loss_occupied=loss, share=occupied.mean())

    def results(self, outputs, metas):
        return list((outputs > 0).cpu().numpy())


def build(*heads, **options):
    return build_detector(heads=heads, **options)


def occupancy(name="occupancy", **options):
    return dict(type="OccupancyHead", name=name, channels=CHANNELS, **options)


def joint_batch(samples=(0, 1)):
    cells = (torch.arange(QUERIES) % 3 == 0).float()
    return dict(training_batch(samples), gt_occupied=cells.expand(len(samples), -1))


def test_both_heads_learn_the_bev():
    detector = build(occupancy())
    losses = detector(return_loss=True, **joint_batch())
    assert {"loss_cls", "occupancy.loss_occupied", "occupancy.share"} <= set(losses)
    losses["occupancy.loss_occupied"].backward()
    encoder = detector.pts_bbox_head.transformer.encoder
    for part in (detector.heads["occupancy"], encoder, detector.img_backbone.layer4):
        assert all(p.grad is not None for p in part.parameters() if p.requires_grad)
    assert all(p.grad is None for p in detector.pts_bbox_head.cls_branches.parameters())


def test_detection_is_unchanged_by_the_second_head():
    plain, joint = build(), build(occupancy())
    joint.load_state_dict(plain.state_dict(), strict=False)
    expected = plain(return_loss=True, **training_batch((0, 1)))
    losses = joint(return_loss=True, **joint_batch())
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)


def test_weight_is_a_factor_of_losses_only():
    plain = build(occupancy())(return_loss=True, **joint_batch())
    weighted = build(occupancy(weight=3.0))(return_loss=True, **joint_batch())
    name = "occupancy.loss_occupied"
    torch.testing.assert_close(weighted[name], 3 * plain[name])
    assert weighted["occupancy.share"] == plain["occupancy.share"]
    assert weighted["loss_cls"] == plain["loss_cls"]


def test_results_of_both_heads_are_returned():
    detector = build(occupancy(), occupancy("other")).eval()
    with torch.no_grad():
        results = detector(return_loss=False, **inference_batch((0, 1)))
    for result in results:
        assert list(result) == ["pts_bbox", "occupancy", "other"]
        assert result["occupancy"].shape == (QUERIES,)


def test_training_fits_the_second_task():
    detector, batch = build(occupancy()), joint_batch((0,))
    optimizer = torch.optim.Adam(detector.heads.parameters(), lr=0.1)
    losses = []
    for _ in range(20):
        loss = detector(return_loss=True, **batch)["occupancy.loss_occupied"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_losses_may_be_lists():
    detector = build(occupancy(weight=2.0))
    head = detector.heads["occupancy"]
    head.loss = lambda *_: dict(loss_levels=[torch.ones(()), torch.ones(())])
    losses = detector(return_loss=True, **joint_batch((0,)))
    assert losses["occupancy.loss_levels"] == [2, 2]
    total, _ = total_loss({"occupancy.loss_levels": losses["occupancy.loss_levels"]})
    assert total == 4


def test_logged_numbers_of_a_head_are_not_added():
    total, terms = total_loss({"gloss.loss_a": torch.ones(()), "gloss.accuracy": torch.ones(())})
    assert total == 1
    assert terms["gloss.accuracy"] == 1


@pytest.mark.parametrize("names", [("pts_bbox",), ("one", "one"), (None,), ("a.b",), ("keys",)])
def test_every_head_needs_a_name_of_its_own(names):
    with pytest.raises(ValueError, match="a name of its own"):
        build(*[occupancy(name) for name in names])
