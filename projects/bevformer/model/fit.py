"""Whether the parts of a detector fit each other, checked once when it is built."""

from mmdet.models.utils import LearnedPositionalEncoding


def check_model(detector):
    """Raise ValueError where channels, grid, classes or range of two parts contradict each other."""
    head = detector.pts_bbox_head
    coder, pos, grid = head.bbox_coder, head.positional_encoding, (head.bev_h, head.bev_w)
    width, channels, classes = head.transformer.embed_dims, head.in_channels, head.num_classes
    xy = [[one.pc_range[i] for i in (0, 1, 3, 4)] for one in (coder, head.transformer.encoder)]
    pairs = [
        ("in_channels of the head", channels, "embed_dims of its transformer", width),
        ("num_classes of the head", classes, "that of its bbox_coder", coder.num_classes),
        ("x and y of pc_range of the bbox_coder", xy[0], "that of the encoder", xy[1]),
    ]
    groups = [getattr(part, "group", None) for part in head.transformer.decoder.modules()]
    group = next(filter(None, groups), head.group_detr)
    pairs.append(("group_detr of the head", head.group_detr, "group of attn_cfgs", group))
    if isinstance(pos, LearnedPositionalEncoding):
        cover = (pos.row_embed.num_embeddings, pos.col_embed.num_embeddings)
        cover = tuple(min(side, most) for side, most in zip(grid, cover))
        pairs.append(("half of in_channels", channels // 2, "num_feats", pos.num_feats))
        pairs.append(("(bev_h, bev_w)", grid, "what (row_num_embed, col_num_embed) cover", cover))
    for name, value, other_name, other in pairs:
        if value != other:
            raise ValueError(f"{name} is {value}, {other_name} is {other}: they must be equal")
