"""A run that is stopped anywhere and resumed computes the same bits as one that was not."""

import json

import pytest
from resume_cases import CASES, differences, possible_pairs
from test_distributed import torchrun

from projects.bevformer.engine.config import load_config


def test_cases_cover_all_pairs():
    assert possible_pairs() == set().union(*(case.pairs() for case in CASES)) & possible_pairs()


@pytest.fixture
def imports(config_path):
    text = config_path.read_text().replace('["dummy_task"]', '["dummy_task", "resume_cases"]')
    config_path.write_text(text)
    return config_path


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.processes == 1], ids=lambda case: case.name
)
def test_resumed_run_is_equal(case, imports, quick, tmp_path):
    assert differences(case, lambda options: load_config(imports, options), tmp_path) == []


def test_resumed_runs_of_two_processes_are_equal(imports, tool_environment, tmp_path):
    script = __file__.replace("test_exact_resume", "two_process_resume")
    torchrun([script, imports, tmp_path], tool_environment)
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report) == 6
    assert {name: found for name, found in report.items() if found} == {}
