"""The BEVFormer detector: images of a queue of frames in, losses or results out.

Shape legend: B batch, T frames, N cameras, L levels, C channels, Q BEV queries.
"""

import contextlib
import logging
from typing import List, NamedTuple, Optional

import torch
from einops import rearrange
from mmcv import ConfigDict
from mmdet.models.builder import DETECTORS, HEADS, MODELS, build_backbone, build_head, build_neck
from mmdet3d.core import bbox3d2result
from mmdet3d.models.detectors import Base3DDetector
from torch import Tensor, nn

from projects.bevformer.model.detection.head import BEVFormerHead
from projects.bevformer.model.fit import check_model
from projects.bevformer.model.frame import Frame
from projects.bevformer.model.grid_mask import GridMask
from projects.bevformer.model.mm.replacements import replace_type
from projects.bevformer.model.perception_transformer import PerceptionTransformer
from projects.bevformer.model.temporal_memory import BEVState, TemporalMemory
from projects.bevformer.published import published, translate

DETECTION = "pts_bbox"


@contextlib.contextmanager
def eval_no_grad(module):
    """Run a block in eval mode without gradients, then restore each submodule's mode."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for child, training in modes.items():
            child.training = training
        # torch 1.10 caches the half-precision copies of weights made without gradient, and would use
        # them for the frames that follow: their weights would never learn.
        torch.clear_autocast_cache()


class QueueBEV(NamedTuple):
    """The current frame of a queue.

    Attributes:
        bev: (B, Q, C) BEV features.
        metas: B metas.
        feats: L tensors (B, N, C, h, w), image features for heads that read them; None without such.
    """

    bev: Tensor
    metas: List[dict]
    feats: Optional[List[Tensor]] = None


# The original's detectors have places for a lidar branch and for heads on single images.
EMPTY_SLOTS = dict.fromkeys(
    "pts_voxel_layer pts_voxel_encoder pts_middle_encoder pts_fusion_layer pts_backbone pts_neck "
    "img_roi_head img_rpn_head".split()
)


@DETECTORS.register_module(name=["BEVFormer", "BEVFormer_fp16"])
@published(ignores=("test_cfg",))
@published(only=EMPTY_SLOTS, why="this network has cameras and heads on the BEV only")
class BEVFormer(Base3DDetector):
    """Camera-only 3D detection with a temporal bird's-eye view.

    `encode` turns the images of a frame into a BEV; `pts_bbox_head` detects objects in it, and any number
    of `heads` solve other tasks on it.

    Args:
        img_backbone: config of the image backbone.
        img_neck: config of the neck.
        pts_bbox_head: config of the BEVFormerHead.
        heads: configs of further BEV heads, see `BEVHead`; each also has a `name`, under which its
            results and losses are stored, and may have a `weight` (1.0), the factor of its losses.
        use_grid_mask: GridMask augmentation of the training images.
        video_test_mode: carry the BEV from frame to frame at test time.
        max_scenes: scenes whose state is kept at test time, at least those of the batch; None is twice the
            largest batch so far.
        num_levels: levels of the neck that the BEV encoder reads, the first ones; None for all.
        train_cfg: dict(pts=dict(assigner=...)).
        pretrained: URL or path of backbone weights, or dict(img=...) of it.
        data_preprocessor: config of the ImagePreprocessor for pipelines that end with uint8 images; None
            for pipelines that preprocess the images, such as the published ones.

    Attributes:
        autocast_dtype: None, or the dtype under which forward runs in mixed precision.

    Raises:
        ValueError: two parts do not fit each other, or a head has no name of its own.

    Source: BEVFormer (arXiv 2203.17270).
    """

    def __init__(
        self,
        img_backbone,
        img_neck,
        pts_bbox_head,
        heads=(),
        use_grid_mask=False,
        video_test_mode=False,
        max_scenes=None,
        num_levels=None,
        train_cfg=None,
        pretrained=None,
        init_cfg=None,
        data_preprocessor=None,
    ):
        super().__init__(init_cfg)
        file = pretrained.get("img") if isinstance(pretrained, dict) else pretrained
        if file:
            # On the CPU: a file of GPU tensors would go to GPU 0 in every process. ConfigDict: mmdet's
            # Swin reads `init_cfg.checkpoint`.
            checkpoint = ConfigDict(type="Pretrained", checkpoint=file, map_location="cpu")
            img_backbone = dict(img_backbone, init_cfg=checkpoint)
        pts_cfg = dict(pts_bbox_head, train_cfg=train_cfg["pts"] if train_cfg else None)
        parts = dict(backbone=img_backbone, head=pts_cfg, heads=list(heads))
        parts = translate(parts, replace_type, logging.getLogger("mmdet3d"))
        self.img_backbone = build_backbone(parts["backbone"])
        self.img_neck = build_neck(img_neck)
        self.pts_bbox_head = build_head(parts["head"])
        self.heads, self.head_weights = nn.ModuleDict(), {}
        for cfg in parts["heads"]:
            self._add_head(dict(cfg))
        self.data_preprocessor = MODELS.build(data_preprocessor) if data_preprocessor else None
        self.use_grid_mask = use_grid_mask
        self.grid_mask = GridMask()
        self.num_levels = num_levels
        self.video_test_mode = video_test_mode
        self.max_scenes = max_scenes
        self.memory = TemporalMemory()
        self.autocast_dtype = None
        head = self.pts_bbox_head
        # Heads and transformers from elsewhere need not have what is compared.
        if isinstance(head, BEVFormerHead) and isinstance(head.transformer, PerceptionTransformer):
            check_model(self)

    def _add_head(self, cfg):
        name = cfg.pop("name", None)
        if not str(name).isidentifier() or name in (None, DETECTION) or hasattr(self.heads, name):
            raise ValueError(f"name={name!r} of a head: give each of `heads` a name of its own")
        self.head_weights[name] = cfg.pop("weight", 1.0)
        self.heads[name] = HEADS.build(cfg)

    def reset_memory(self):
        """Forget the previous frames of all test streams."""
        self.memory.reset()

    def preprocess(self, img, img_metas):
        """Images of one frame as `encode` takes them.

        Args:
            img: (B, N, 3, H, W) float, or (B, N, H, W, 3) uint8 with a `data_preprocessor`.
            img_metas: B metas, from `describe`.

        Returns:
            (B, N, 3, H, W) float.

        Raises:
            ValueError: the images are not those that the pipeline of this model ends with.
        """
        if self.data_preprocessor is not None:
            return self.data_preprocessor(img, img_metas)
        if img.dtype == torch.uint8:
            what = "the pipeline ends with uint8 images, which need a data_preprocessor"
            raise ValueError(f"{what}: set model.data_preprocessor, see configs/config.py")
        return img

    def describe(self, img_metas, img):
        """Metas of the images that `preprocess` returns.

        Args:
            img_metas: B metas of the images of the pipeline.
            img: (B, N, ...) these images.
        """
        if self.data_preprocessor is None:
            return img_metas
        return self.data_preprocessor.describe(img_metas, img.shape[-3:-1])

    def extract_feat(self, img, img_metas=None, image_flip=None):
        """Image features of one frame.

        Args:
            img: (B, N, 3, H, W).
            img_metas: unused; published code passes it.
            image_flip: (B,) bool, samples whose images are mirrored for the backbone and whose features
                are mirrored back: an augmentation without effect on the geometry. None for none.

        Returns:
            L tensors (B, N, C, h, w).

        Raises:
            ValueError: the neck is for another backbone.
        """
        if image_flip is not None:
            image_flip = image_flip[:, None, None, None, None]
            img = torch.where(image_flip, img.flip(-1), img)
        images = rearrange(img, "b n c h w -> (b n) c h w")
        if self.use_grid_mask:
            images = self.grid_mask(images)
        stages = self.img_backbone(images)
        takes = getattr(self.img_neck, "in_channels", None)
        gives = [stage.shape[1] for stage in stages]
        if isinstance(takes, (list, tuple)) and list(takes) != gives:
            what = f"img_neck.in_channels is {list(takes)}, but the backbone gives {gives} channels"
            raise ValueError(f"{what}: set it so, or change out_indices of the backbone")
        levels = [
            rearrange(level, "(b n) c h w -> b n c h w", b=len(img))
            for level in self.img_neck(stages)
        ]
        if image_flip is not None:
            levels = [torch.where(image_flip, level.flip(-1), level) for level in levels]
        return levels

    def encode(self, images, frame, prev_bev=None):
        """The BEV of one frame, in the precision of the caller: under autocast in half precision.

        `bev_of_queue` does the same for the current frame of a queue.

        Args:
            images: (B, N, 3, H, W) float, from `preprocess`.
            frame: Frame, the cameras and the ego motion.
            prev_bev: (B, Q, C) BEV features of the previous frame, or None.

        Returns:
            (B, Q, C) BEV features, row by row of the grid.
        """
        feats = self.extract_feat(images, image_flip=frame.image_flip)
        return self.pts_bbox_head.encode(feats[: self.num_levels], frame, prev_bev)

    def bev_of_queue(self, img, img_metas, state=None):
        """The BEV of the current frame of each queue, from its frames in time order.

        The frames before the current one only pass their BEV on.

        Args:
            img: (B, T, N, 3, H, W), or (B, T, N, H, W, 3) uint8 with a `data_preprocessor`.
            img_metas: B dicts {0: meta, ..., T - 1: meta}.
            state: None in training, where `can_bus` is relative within the queue; else the BEVState before
                a queue of one frame whose `can_bus` is absolute.

        Returns:
            QueueBEV.
        """
        metas = [self.describe([queue[t] for queue in img_metas], img) for t in img_metas[0]]
        prev_bev, previous = (None, None) if state is None else state.read(metas[0])
        frames = [Frame.from_metas(frame_metas, previous, img.device) for frame_metas in metas]
        # 1. visible queries of all frames, with a single device sync
        frames = self.pts_bbox_head.find_visible(frames)
        # 2. history: encoder only, without gradient
        if len(frames) > 1:
            with eval_no_grad(self):
                for t, frame in enumerate(frames[:-1]):
                    prev_bev = self.encode(self.preprocess(img[:, t], metas[t]), frame, prev_bev)
        # 3. the current frame
        images = self.preprocess(img[:, -1], metas[-1])
        feats = self.extract_feat(images, image_flip=frames[-1].image_flip)
        bev = self.pts_bbox_head.encode(feats[: self.num_levels], frames[-1], prev_bev)
        return QueueBEV(bev, metas[-1])

    def losses(self, queue, targets):
        """Losses of all heads.

        Args:
            queue: QueueBEV.
            targets: dict of the rest of the batch, without images and metas; `gt_bboxes_3d` and
                `gt_labels_3d` for detection.

        Returns:
            dict of losses; those of a further head as `<name>.<loss>`, multiplied by its weight.
        """
        names = ("gt_bboxes_3d", "gt_labels_3d") if self.heads else targets
        losses = self._detection_losses(queue, **{name: targets[name] for name in names})
        for name, head in self.heads.items():
            for loss, value in head.loss(head(queue.bev), queue.metas, targets).items():
                weight = self.head_weights[name] if "loss" in loss else 1.0
                several = isinstance(value, (list, tuple))
                value = [weight * part for part in value] if several else weight * value
                losses[f"{name}.{loss}"] = value
        return losses

    def _detection_losses(self, queue, gt_bboxes_3d, gt_labels_3d):
        """A target that is missing, or that no head reads, is a TypeError naming it."""
        outputs = self.pts_bbox_head.detect(queue.bev)
        return self.pts_bbox_head.loss(gt_bboxes_3d, gt_labels_3d, outputs, img_metas=queue.metas)

    def step(self, images, img_metas, state=None):
        """Results of the next frame of each stream; the state is passed in and returned.

        Args:
            images: (B, N, 3, H, W), or (B, N, H, W, 3) uint8 with a `data_preprocessor`; BEVFormer v2:
                (B, F, N, 3, H, W).
            img_metas: B metas with `scene_token` and absolute `can_bus`, frames of a scene in time order;
                BEVFormer v2: `frames` in a meta is {offset: meta}.
            state: BEVState after the frame before; None at the start.

        Returns:
            results: B dicts {"pts_bbox": {"boxes_3d", "scores_3d", "labels_3d"}, <head>: its results}, on
                the CPU.
            state: BEVState for the next call; empty without `video_test_mode`, where every frame starts anew.
        """
        if state is None or not self.video_test_mode:
            state = BEVState()
        queues = [{**meta.get("frames", {}), 0: meta} for meta in img_metas]
        images = images if "frames" in img_metas[0] else images[:, None]
        with self._precision(images):
            queue = self.bev_of_queue(images, queues, state)
            boxes = self.pts_bbox_head.get_bboxes(self.pts_bbox_head.detect(queue.bev), queue.metas)
            results = [{DETECTION: bbox3d2result(*of_sample)} for of_sample in boxes]
            for name, head in self.heads.items():
                for result, of_sample in zip(results, head.results(head(queue.bev), queue.metas)):
                    result[name] = of_sample
        if self.video_test_mode:
            state = state.updated(img_metas, queue.bev, self.max_scenes)
        return results, state

    def forward(self, return_loss=True, img=None, img_metas=None, rescale=False, **targets):
        """Train or test, under autocast when `autocast_dtype` is set.

        Args:
            return_loss: train (True) or test (False).
            img: training: (B, T, N, 3, H, W); testing: a list with one (B, N, 3, H, W) tensor. With a
                `data_preprocessor` uint8 with the channels last, (..., H, W, 3).
            img_metas: training: B dicts {0: meta, ..., T-1: meta}; testing: a list with B metas.
            rescale: unused; mmdet passes it.
            targets: training: gt_bboxes_3d, B LiDARInstance3DBoxes of the last frame; gt_labels_3d, B (G,)
                long tensors; and what further heads learn from.

        Returns:
            Training: dict of losses, see `losses`. Testing: B results, see `step`.
        """
        if not return_loss:
            return self.forward_test(img, img_metas)
        with self._precision(img):
            return self.losses(self.bev_of_queue(img, img_metas), targets)

    def _precision(self, images):
        """Context manager: autocast where `autocast_dtype` is set."""
        dtype = self.autocast_dtype
        return (
            torch.autocast(images.device.type, dtype=dtype) if dtype else contextlib.nullcontext()
        )

    def forward_train(self, img, img_metas, gt_bboxes_3d, gt_labels_3d):
        """mmdet's name for the losses of a batch, see `forward`."""
        return self(True, img, img_metas, gt_bboxes_3d=gt_bboxes_3d, gt_labels_3d=gt_labels_3d)

    def forward_test(self, img, img_metas):
        """Results of the next frame of each stream; the memory holds the state.

        Args:
            img: a list with one tensor; test-time augmentation is not supported.
            img_metas: a list with B metas; both as in `step`.

        Raises:
            ValueError: more than one augmentation.
        """
        if len(img) != 1 or len(img_metas) != 1:
            raise ValueError(f"{type(self).__name__} tests one augmentation, got {len(img)}")
        results, self.memory.state = self.step(img[0], img_metas[0], self.memory.state)
        return results

    def simple_test(self, img, img_metas, rescale=False):
        """mmdet's name for testing one augmentation, see `forward_test`."""
        return self.forward_test([img], [img_metas])

    def aug_test(self, imgs, img_metas, rescale=False):
        """mmdet's name for several augmentations, which `forward_test` refuses."""
        return self.forward_test(imgs, img_metas)
