"""A synthetic data set with info files that a test may damage."""

import os
import shutil

import pytest

from projects.bevformer.nuscenes.create_infos import create_nuscenes_infos


@pytest.fixture(scope="session")
def whole_root(synthetic_root, tmp_path_factory):
    """The data set with `synthetic_infos_temporal_{train,val}.pkl`; not to be changed."""
    root = tmp_path_factory.mktemp("whole") / "data"
    shutil.copytree(synthetic_root, root)
    create_nuscenes_infos(str(root), str(root), "synthetic", "v1.0-mini", str(root))
    return root


@pytest.fixture
def data_root(whole_root, tmp_path):
    """A copy of its own for the test."""
    return shutil.copytree(whole_root, tmp_path / "data", copy_function=os.link)


@pytest.fixture
def replace():
    """Write a file anew: the copies are hard links."""

    def replace(path, content):
        path.unlink()
        path.write_bytes(content)

    return replace
