"""BEVFormer (arXiv 2203.17270) for OpenMMLab 1.x."""
