"""Whether the parts of a detector fit each other, checked once when it is built."""

from mmdet.models.utils import LearnedPositionalEncoding


def check_model(detector):
    """Check the parts of a BEVFormer.

    Raises:
        ValueError: channels, grid, classes or range of two parts contradict each other; names both.
    """
    head = detector.pts_bbox_head
    coder, encoder, encoding = head.bbox_coder, head.transformer.encoder, head.positional_encoding
    channels, grid = head.in_channels, (head.bev_h, head.bev_w)
    width = head.transformer.embed_dims
    xy = [[limits[i] for i in (0, 1, 3, 4)] for limits in (coder.pc_range, encoder.pc_range)]
    problem = None
    if coder.num_classes != head.num_classes:
        problem = (
            f"num_classes of the head is {head.num_classes}, of its bbox_coder {coder.num_classes}"
        )
    if xy[0] != xy[1]:
        problem = (
            f"pc_range of the bbox_coder is {coder.pc_range}, of the encoder {encoder.pc_range}: objects "
            "are searched on the encoder's grid, so x and y must be equal"
        )
    if isinstance(encoding, LearnedPositionalEncoding):
        size = encoding.row_embed.num_embeddings, encoding.col_embed.num_embeddings
        if size[0] < grid[0] or size[1] < grid[1]:
            problem = (
                f"bev_h and bev_w are {grid}, row_num_embed and col_num_embed of the positional encoding "
                f"{size}: they must be at least as large"
            )
        if 2 * encoding.num_feats != channels:
            problem = (
                f"num_feats of the positional encoding is {encoding.num_feats}: it must be half of "
                f"in_channels, {channels // 2}"
            )
    if channels != width:
        problem = f"in_channels of the head is {channels}, embed_dims of its transformer {width}"
    if problem is not None:
        raise ValueError(problem)
