"""The nuScenes data set: tables, info files and the detection benchmark."""
