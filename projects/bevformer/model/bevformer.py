"""The BEVFormer detector: images of a queue of frames in, losses or boxes out.

Shape legend: B batch, T frames, N cameras, L levels, C channels, Q BEV queries.
"""

import contextlib

import torch
from einops import rearrange
from mmdet.models.builder import DETECTORS, MODELS, build_backbone, build_head, build_neck
from mmdet3d.core import bbox3d2result
from mmdet3d.models.detectors import Base3DDetector

from projects.bevformer.model.grid_mask import GridMask
from projects.bevformer.model.mm.backbone import frugal_backbone
from projects.bevformer.model.temporal_memory import TemporalMemory


@contextlib.contextmanager
def frozen(module):
    """Within it `module` is in eval mode and no gradient is recorded; afterwards all modes are as before."""
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


@DETECTORS.register_module()
class BEVFormer(Base3DDetector):
    """Camera-only 3D detection with a temporal bird's-eye view.

    Args:
        img_backbone: config of the image backbone.
        img_neck: config of the neck.
        pts_bbox_head: config of the BEVFormerHead.
        use_grid_mask: GridMask augmentation of the training images.
        video_test_mode: carry the BEV from frame to frame at test time.
        train_cfg: dict(pts=dict(assigner=...)).
        test_cfg: dict(pts=...) or None.
        pretrained: dict(img=URL or path) of backbone weights.
        data_preprocessor: config of the ImagePreprocessor for pipelines that hand on uint8 images; None
            for pipelines that do the whole work, such as the published ones.

    Attributes:
        autocast_dtype: None, or the dtype under which forward runs in mixed precision.

    Source: BEVFormer (arXiv 2203.17270).
    """

    def __init__(
        self,
        img_backbone,
        img_neck,
        pts_bbox_head,
        use_grid_mask=False,
        video_test_mode=False,
        train_cfg=None,
        test_cfg=None,
        pretrained=None,
        init_cfg=None,
        data_preprocessor=None,
    ):
        super().__init__(init_cfg)
        if pretrained and pretrained.get("img"):
            # On the CPU: a file of GPU tensors would go to GPU 0 in every process.
            checkpoint = dict(type="Pretrained", checkpoint=pretrained["img"], map_location="cpu")
            img_backbone = dict(img_backbone, init_cfg=checkpoint)
        self.img_backbone = build_backbone(frugal_backbone(img_backbone))
        self.img_neck = build_neck(img_neck)
        self.pts_bbox_head = build_head(
            dict(
                pts_bbox_head,
                train_cfg=train_cfg["pts"] if train_cfg else None,
                test_cfg=test_cfg["pts"] if test_cfg else None,
            )
        )
        self.data_preprocessor = MODELS.build(data_preprocessor) if data_preprocessor else None
        self.use_grid_mask = use_grid_mask
        self.grid_mask = GridMask()
        self.video_test_mode = video_test_mode
        self.memory = TemporalMemory()
        self.autocast_dtype = None

    def reset_memory(self):
        """Forget the previous frames of all test streams."""
        self.memory.reset()

    def preprocess(self, img, img_metas):
        """Images and metas of one frame as `extract_feat` and the head take them.

        Args:
            img: (B, N, 3, H, W) float, or (B, N, H, W, 3) uint8 with a `data_preprocessor`.
            img_metas: B metas.

        Returns:
            img: (B, N, 3, H, W) float.
            img_metas: B metas of it.

        Raises:
            ValueError: the images are not those that the pipeline of this model ends with.
        """
        if self.data_preprocessor is not None:
            return self.data_preprocessor(img, img_metas)
        if img.dtype == torch.uint8:
            raise ValueError(
                "the pipeline hands on uint8 images, and the model has no data_preprocessor that makes "
                "the backbone's input of them: set model.data_preprocessor, see configs/config.py"
            )
        return img, img_metas

    def extract_feat(self, img, img_metas=None):
        """Image features of one frame.

        Args:
            img: (B, N, 3, H, W).
            img_metas: accepted because published code passes it.

        Returns:
            L tensors (B, N, C, h, w).

        Raises:
            ValueError: the neck is for another backbone.
        """
        batch = img.shape[0]
        images = rearrange(img, "b n c h w -> (b n) c h w")
        if self.use_grid_mask:
            images = self.grid_mask(images)
        stages = self.img_backbone(images)
        self._check_neck(stages)
        levels = self.img_neck(stages)
        return [rearrange(level, "(b n) c h w -> b n c h w", b=batch) for level in levels]

    def _check_neck(self, stages):
        """Raise ValueError where the neck, if it says what it takes, is not for this backbone."""
        takes = getattr(self.img_neck, "in_channels", None)
        gives = [stage.shape[1] for stage in stages]
        if isinstance(takes, (list, tuple)) and list(takes) != gives:
            raise ValueError(
                f"img_neck.in_channels is {list(takes)}, but the backbone gives {gives} channels: set "
                "it so, or change out_indices of the backbone"
            )

    def forward(
        self,
        return_loss=True,
        img=None,
        img_metas=None,
        gt_bboxes_3d=None,
        gt_labels_3d=None,
        rescale=False,
    ):
        """Train or test, under autocast when `autocast_dtype` is set.

        Args:
            return_loss: train (True) or test (False).
            img: training: (B, T, N, 3, H, W); testing: a list with one (B, N, 3, H, W) tensor. With a
                `data_preprocessor` uint8 with the channels last, (..., H, W, 3).
            img_metas: training: B dicts {0: meta, ..., T-1: meta}; testing: a list with B metas.
            gt_bboxes_3d: training: B LiDARInstance3DBoxes of the last frame.
            gt_labels_3d: training: B (G,) long tensors.
            rescale: accepted because mmdet passes it; boxes are in metres.

        Returns:
            Training: dict of losses. Testing: B results, see `forward_test`.
        """
        device = (img if return_loss else img[0]).device.type
        dtype = self.autocast_dtype
        precision = torch.autocast(device, dtype=dtype) if dtype else contextlib.nullcontext()
        with precision:
            if return_loss:
                return self.forward_train(img, img_metas, gt_bboxes_3d, gt_labels_3d)
            return self.forward_test(img, img_metas)

    def forward_train(self, img, img_metas, gt_bboxes_3d, gt_labels_3d):
        """Losses of the last frame of each queue; the frames before it only hand their BEV on.

        Args:
            img: (B, T, N, 3, H, W).
            img_metas: B dicts {0: meta, ..., T-1: meta}; can_bus relative within the queue.
            gt_bboxes_3d: B LiDARInstance3DBoxes with 9 columns.
            gt_labels_3d: B (G,) long tensors.

        Returns:
            dict of losses.
        """
        hits = self.camera_hits(img, img_metas)
        prev_bev = self.obtain_history_bev(img[:, :-1], img_metas, hits)
        metas = [queue[img.shape[1] - 1] for queue in img_metas]
        current, metas = self.preprocess(img[:, -1], metas)
        has_prev = [prev_bev is not None and bool(meta["prev_bev_exists"]) for meta in metas]
        feats = self.extract_feat(current)
        outputs = self.pts_bbox_head(feats, metas, prev_bev, has_prev=has_prev, hits=hits[-1])
        return self.pts_bbox_head.loss(gt_bboxes_3d, gt_labels_3d, outputs, img_metas=metas)

    def camera_hits(self, img, img_metas):
        """Visible (query, camera) pairs for all frames of the queue, with one host-device sync.

        Args:
            img: (B, T, ...) the images of the queues, as in `forward`.
            img_metas: B dicts {frame: meta}, the T frames in the order of the images.

        Returns:
            T CameraHits.
        """
        metas_of_frames = [[queue[t] for queue in img_metas] for t in img_metas[0]]
        if self.data_preprocessor is not None:
            image_hw = img.shape[-3:-1]
            metas_of_frames = [
                self.data_preprocessor.describe(metas, image_hw) for metas in metas_of_frames
            ]
        return self.pts_bbox_head.camera_hits(metas_of_frames, img.device)

    def obtain_history_bev(self, img, img_metas, hits=None):
        """BEV of the last history frame, in eval mode and without gradient.

        Args:
            img: (B, T - 1, N, 3, H, W) history frames.
            img_metas: B dicts {0: meta, ...} of the queues.
            hits: CameraHits of at least the history frames; None finds them frame by frame.

        Returns:
            (B, Q, C), or None where there is no history.
        """
        prev_bev = None
        with frozen(self):
            for t in range(img.shape[1]):
                frame, metas = self.preprocess(img[:, t], [queue[t] for queue in img_metas])
                has_prev = [
                    prev_bev is not None and bool(meta["prev_bev_exists"]) for meta in metas
                ]
                feats = self.extract_feat(frame)
                prev_bev = self.pts_bbox_head(
                    feats,
                    metas,
                    prev_bev,
                    only_bev=True,
                    has_prev=has_prev,
                    hits=hits[t] if hits else None,
                )
        return prev_bev

    def forward_test(self, img, img_metas):
        """Boxes of the next frame of each stream.

        Args:
            img: a list with one (B, N, 3, H, W) tensor; test-time augmentation is not supported.
            img_metas: a list with B metas; can_bus absolute, frames of a scene in time order.

        Returns:
            B dicts {"pts_bbox": {"boxes_3d", "scores_3d", "labels_3d"}} on the CPU.

        Raises:
            ValueError: more than one augmentation.
        """
        if len(img) != 1 or len(img_metas) != 1:
            raise ValueError(f"BEVFormer tests one augmentation, got {len(img)}")
        images, metas = self.preprocess(img[0], img_metas[0])
        if not self.video_test_mode:
            self.memory.reset()
        prev_bev, has_prev, relative_metas = self.memory.recall(metas)
        feats = self.extract_feat(images)
        outputs = self.pts_bbox_head(feats, relative_metas, prev_bev, has_prev=has_prev)
        self.memory.remember(outputs["bev_embed"], metas)
        return [
            dict(pts_bbox=bbox3d2result(*boxes))
            for boxes in self.pts_bbox_head.get_bboxes(outputs, relative_metas)
        ]

    def simple_test(self, img, img_metas, rescale=False):
        """mmdet's name for testing one augmentation; arguments of one, see `forward_test`."""
        return self.forward_test([img], [img_metas])

    def aug_test(self, imgs, img_metas, rescale=False):
        """mmdet's name for several augmentations, which `forward_test` refuses."""
        return self.forward_test(imgs, img_metas)
