"""Values of a config that mean nothing are refused, each with its key, before anything is built."""

from pathlib import Path

import pytest
from test_config_checks import RECIPES, recipe

from projects.bevformer.engine.config_checks import _all_values
from projects.bevformer.engine.value_rules import is_number, senseless

# Read by nothing, here as there, or only where several readers take several kinds.
_UNREAD = ("voxel_size", "pts_scale_ratio", "img_scale", "min_visibility", "crop", "reisze", "frames")


@pytest.mark.parametrize("path", RECIPES[::6], ids=lambda path: path.stem)
def test_no_number_and_no_switch_of_a_recipe_may_be_a_text(path):
    cfg = recipe(str(path.relative_to(Path(RECIPES[0]).parents[1] if "bevformer" in str(path.parent.name) else path.parent)))
    values = [one for one in _all_values(cfg) if one.given and one.key.startswith(("model", "data", "opt"))]
    numbers = [one for one in values if isinstance(one.value, bool) or is_number(one.value)]
    passed = [
        one.key
        for one in numbers
        if senseless(one.key, one.reader, "text") is None and not any(name in one.key for name in _UNREAD)
    ]
    assert len(numbers) > 100
    assert passed == []
