"""What may be wrong with an installation, a data set or a config, one finding at a time.

These modules import neither OpenMMLab nor torch at module level: they run where nothing else does.
"""
