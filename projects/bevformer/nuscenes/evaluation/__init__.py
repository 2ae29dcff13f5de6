"""The nuScenes detection benchmark."""
