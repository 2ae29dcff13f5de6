"""Whether the parts of a detector fit each other, checked once when it is built."""

from mmdet.models.utils import LearnedPositionalEncoding


def check_model(detector):
    """Raise ValueError where channels, grid, classes or range of two parts contradict each other."""
    head = detector.pts_bbox_head
    coder, encoder, pos = head.bbox_coder, head.transformer.encoder, head.positional_encoding
    channels, width, grid = head.in_channels, head.transformer.embed_dims, (head.bev_h, head.bev_w)
    xy = [[limits[i] for i in (0, 1, 3, 4)] for limits in (coder.pc_range, encoder.pc_range)]
    problems = {
        f"in_channels of the head is {channels}, embed_dims of its transformer {width}": channels
        != width,
        f"num_classes of the head is {head.num_classes}, of its bbox_coder {coder.num_classes}": (
            head.num_classes != coder.num_classes
        ),
        f"pc_range of the bbox_coder is {coder.pc_range}, of the encoder {encoder.pc_range}: objects are "
        "searched on the encoder's grid, so x and y must be equal": xy[0] != xy[1],
    }
    if isinstance(pos, LearnedPositionalEncoding):
        size = pos.row_embed.num_embeddings, pos.col_embed.num_embeddings
        problems[
            f"bev_h and bev_w are {grid}, row_num_embed and col_num_embed of the positional encoding {size}"
        ] = size[0] < grid[0] or size[1] < grid[1]
        problems[
            f"num_feats of the positional encoding is {pos.num_feats}: it must be half of in_channels, "
            f"{channels // 2}"
        ] = 2 * pos.num_feats != channels
    for problem, found in problems.items():
        if found:
            raise ValueError(problem)
