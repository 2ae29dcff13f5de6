"""What may be wrong with an installation, a data set or a config, one finding at a time.

These modules import nothing of OpenMMLab or torch at their head: they run where nothing else does.
"""
