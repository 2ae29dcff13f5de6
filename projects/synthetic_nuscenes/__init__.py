"""A synthetic street world, its renderer, and a writer of the nuScenes schema: docs/synthetic_world.md."""
