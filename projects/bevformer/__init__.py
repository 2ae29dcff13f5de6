"""BEVFormer (arXiv 2203.17270) for OpenMMLab 1.x."""

__version__ = "0.1.0"
