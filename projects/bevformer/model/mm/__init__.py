"""Parts of mmcv and mmdet, adapted: same parameters, less memory, any device."""
