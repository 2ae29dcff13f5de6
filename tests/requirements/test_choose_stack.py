"""The torch build for a machine, with made-up nvidia-smi outputs."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "requirements" / "choose_stack.py"

V100, T4, A100, H100 = (7, 0), (7, 5), (8, 0), (9, 0)


@pytest.fixture(scope="module")
def stacks():
    spec = importlib.util.spec_from_file_location("choose_stack", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("python", "driver", "cards", "torch", "torchvision"),
    [
        ((3, 8), "450.80.02", [V100], "1.10.0+cu113", "0.11.1+cu113"),
        ((3, 9), "470.82", [A100], "1.10.0+cu113", "0.11.1+cu113"),
        ((3, 8), "580.65", [A100, (8, 9)], "1.10.0+cu113", "0.11.1+cu113"),
        ((3, 8), None, [], "1.10.0", "0.11.1"),
        ((3, 9), None, [], "1.10.0", "0.11.1"),
        ((3, 10), None, [], "2.11.0", "0.26.0"),
        ((3, 10), "580.65.06", [H100], "2.11.0", "0.26.0"),
        ((3, 12), "590.1", [T4, A100], "2.11.0", "0.26.0"),
        ((3, 11), "525.60.13", [H100], "2.10.0", "0.25.0"),
        ((3, 12), "579.99", [V100], "2.10.0", "0.25.0"),
        ((3, 11), "580.1", [None], "2.11.0", "0.26.0"),  # an unknown card is not judged
        ((3, 11), "535.1", [], "2.10.0", "0.25.0"),
    ],
)
def test_choice(stacks, python, driver, cards, torch, torchvision):
    stack, reason = stacks.choose(python, driver, cards)
    assert stack.requirements == (f"torch=={torch}", f"torchvision=={torchvision}")
    assert (stack.find_links is None) == ("cu113" not in torch)
    assert (driver or "without an NVIDIA driver") in reason
    assert ("for CPUs only" in reason) == (torch == "1.10.0")


@pytest.mark.parametrize(
    ("python", "driver", "cards", "says"),
    [
        ((3, 8), "535.1", [H100], r"no kernels for sm_90.*PYTHON=/path/to/python3.10 TORCH=2.10.0"),
        ((3, 9), "580.1", [A100, H100], r"for sm_90\. .*python3.10 TORCH=2.11.0"),
        (
            (3, 8),
            "450.1",
            [H100],
            r"update the driver to 525 or newer and make setup PYTHON=.*3\.10",
        ),
        ((3, 8), "440.1", [V100], r"driver 440\.1.*update the driver to 450"),
        ((3, 11), "580.1", [V100], r"no kernels for sm_70\. .*make setup TORCH=2\.10\.0"),
        ((3, 11), "580.1", [V100, H100], r"for sm_70\. .*make setup TORCH=2\.10\.0"),
        (
            (3, 11),
            "535.1",
            [(6, 0)],
            r"for sm_60\. .*PYTHON=/path/to/python3.8 TORCH=1.10.0\+cu113",
        ),
        (
            (3, 11),
            "580.1",
            [(3, 5), A100],  # a display card and one for training
            r"for sm_35\. Remedy: make setup TORCH=2\.11\.0 with CUDA_VISIBLE_DEVICES set to the other "
            r"cards \(sm_80\); for CPUs only: make setup TORCH=2\.11\.0 and run the tools with --device cpu",
        ),
        ((3, 11), "580.1", [(3, 7), V100, V100], r"TORCH=2\.10\.0 with .* other cards \(sm_70\);"),
        (
            (3, 8),
            "535.1",
            [A100, H100],
            r"python3.10 TORCH=2.10.0, or .*cu113 with CUDA_VISIBLE_DEV",
        ),
        ((3, 11), "580.1", [(3, 5)], r"no supported torch has kernels for all of these cards"),
        (
            (3, 11),
            "470.82",
            [A100],
            r"driver 470\.82.*python3.8 TORCH=1.10.0\+cu113.*driver to 525",
        ),
        ((3, 11), "470.82", [H100], r"Remedy: update the driver to 525 or newer; for CPUs"),
        ((3, 13), "580.1", [H100], r"Python 3\.13 is not supported. Use 3\.8 to 3\.12"),
        ((3, 7), None, [], r"Python 3\.7 is not supported"),
    ],
)
def test_nothing_fits(stacks, python, driver, cards, says):
    with pytest.raises(stacks.StackError, match=says) as raised:
        stacks.choose(python, driver, cards)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("python", "driver", "cards", "torch", "says"),
    [
        ((3, 11), None, [], "2.10.0", "default would be: Python 3.11 without .* torch 2.11.0"),
        ((3, 11), "470.82", [A100], "2.11.0", "although no torch for Python 3.11 runs with"),
        ((3, 11), "580.1", [V100], "2.11.0", "although .* no kernels for sm_70"),
        ((3, 8), None, [], "1.10.0+cu113", "default would be: Python 3.8"),
        ((3, 11), "535.1", [A100], "2.10.0", "TORCH=2.10.0 as requested$"),
    ],
)
def test_override(stacks, python, driver, cards, torch, says):
    stack, reason = stacks.choose(python, driver, cards, torch)
    assert stack.torch == torch
    assert re.search(says, reason)


@pytest.mark.parametrize(
    ("python", "torch", "known"),
    [
        ((3, 11), "2.4.1", "TORCH=2.11.0 or TORCH=2.10.0"),
        ((3, 11), "1.10.0", "TORCH=2.11.0 or TORCH=2.10.0"),
        ((3, 8), "1.10.0+cu102", "TORCH=1.10.0+cu113 or TORCH=1.10.0"),
    ],
)
def test_override_with_an_unknown_version(stacks, python, torch, known):
    with pytest.raises(stacks.StackError, match=f"TORCH={re.escape(torch)} .*{re.escape(known)}"):
        stacks.choose(python, torch=torch)


@pytest.mark.parametrize(
    ("name", "capability"),
    [
        ("Tesla V100-SXM2-32GB", V100),
        ("Tesla P100-PCIE-16GB", (6, 0)),
        ("Tesla T4", T4),
        ("Quadro RTX 5000", T4),
        ("NVIDIA GeForce RTX 2080 Ti", T4),
        ("NVIDIA A100-SXM4-80GB", A100),
        ("NVIDIA A10", (8, 6)),
        ("NVIDIA A40", (8, 6)),
        ("NVIDIA RTX A6000", (8, 6)),
        ("NVIDIA GeForce RTX 3090", (8, 6)),
        ("NVIDIA GeForce RTX 4090", (8, 9)),
        ("NVIDIA RTX 5000 Ada Generation", (8, 9)),
        ("NVIDIA L40S", (8, 9)),
        ("NVIDIA H100 80GB HBM3", H100),
        ("NVIDIA H800", H100),
        ("NVIDIA H200", H100),
        ("NVIDIA GeForce RTX 5090", None),
        ("Matrox G200", None),
    ],
)
def test_capability_by_name(stacks, name, capability):
    assert stacks.capability_of(name) == capability


@pytest.fixture
def nvidia_smi(tmp_path):
    """Put a made-up nvidia-smi on PATH: (exit code, output) by query field; returns the environment."""

    def install(**answers):
        cases = "".join(
            f"*={field}*) echo '{output}'; exit {code} ;;\n"
            for field, (code, output) in answers.items()
        )
        path = tmp_path / "nvidia-smi"
        path.write_text(f'#!/bin/sh\ncase "$1" in\n{cases}*) exit 99 ;;\nesac\n')
        path.chmod(0o755)
        return {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "TORCH_FIND_LINKS": ""}

    return install


def run(env, *arguments):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], env=env, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_command(nvidia_smi):
    env = nvidia_smi(driver_version=(0, "535.104.05\n535.104.05"), compute_cap=(0, "8.0\n8.6"))
    code, out, err = run(env, "--python", "3.11")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "torch==2.10.0 torchvision==0.25.0",
        "Python 3.11, driver 535.104.05, sm_80 sm_86: torch 2.10.0 with CUDA 12.8 (driver 525 or newer)",
    ]
    code, out, err = run(env, "--python", "3.8")
    assert re.match(
        r"torch==1.10.0\+cu113 torchvision==0.11.1\+cu113 --find-links https://\S+/cu113/\S+\n", out
    )
    _, out, _ = run({**env, "TORCH_FIND_LINKS": "wheels"}, "--python", "3.8")
    assert out.startswith("torch==1.10.0+cu113 torchvision==0.11.1+cu113\n")


def test_command_where_nothing_fits(nvidia_smi):
    env = nvidia_smi(driver_version=(0, "535.104.05"), compute_cap=(0, "9.0"))
    code, out, err = run(env, "--python", "3.8")
    assert (code, out) == (1, "")
    assert err.startswith("error: torch 1.10.0+cu113")
    assert err.count("\n") == 1


def test_old_driver_without_compute_cap_query(nvidia_smi):
    refusal = (2, 'Field "compute_cap" is not a valid field to query.')
    env = nvidia_smi(
        driver_version=(0, "470.82.01"), compute_cap=refusal, name=(0, "Tesla V100-SXM2-32GB")
    )
    code, out, _ = run(env, "--python", "3.8")
    assert code == 0
    assert "driver 470.82.01, sm_70" in out
    env = nvidia_smi(driver_version=(0, "535.1"), compute_cap=refusal, name=(0, "Matrox G200"))
    assert run(env, "--python", "3.8")[0] == 0


@pytest.mark.parametrize(
    "answer", [(9, "NVIDIA-SMI has failed: no communication"), (0, "No devices were found")]
)
def test_a_failing_nvidia_smi_is_reported(nvidia_smi, answer):
    code, out, err = run(nvidia_smi(driver_version=answer), "--python", "3.11")
    assert code == 0
    assert out.startswith("torch==2.11.0 torchvision==0.26.0\n")
    assert answer[1] in err
    assert "assuming no GPU" in err


def test_card_without_compute_capability_is_recognised_by_name(nvidia_smi):
    driver = (0, "580.65.06")
    name = (0, "Tesla V100-SXM2-16GB")
    env = nvidia_smi(driver_version=driver, compute_cap=(0, "[N/A]"), name=name)
    code, out, err = run(env, "--python", "3.11")
    assert (code, out) == (1, "")
    assert "torch 2.11.0" in err
    assert "no kernels for sm_70" in err
    names = (0, "NVIDIA A100-SXM4-80GB\nTesla T4")
    env = nvidia_smi(driver_version=driver, compute_cap=(0, "8.0\n[N/A]"), name=names)
    assert "driver 580.65.06, sm_75 sm_80:" in run(env, "--python", "3.11")[1]
    # names that cannot be matched with the cards are ignored
    env = nvidia_smi(driver_version=driver, compute_cap=(0, "8.0\n[N/A]"), name=name)
    assert "driver 580.65.06, sm_80:" in run(env, "--python", "3.11")[1]


def test_a_valid_answer_with_an_error_code_is_used(nvidia_smi):
    warning = "WARNING: infoROM is corrupted at gpu 0000:3B:00.0"
    env = nvidia_smi(
        driver_version=(14, f"535.104.05\n{warning}"),
        compute_cap=(14, f"[N/A]\n{warning}"),
        name=(14, f"Tesla V100-SXM2-16GB\n{warning}"),
    )
    code, out, err = run(env, "--python", "3.11")
    assert code == 0
    assert "driver 535.104.05, sm_70: torch 2.10.0" in out
    assert err == f"nvidia-smi failed with code 14 ({warning})\n"


def test_no_nvidia_smi(stacks, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert stacks.ask_nvidia_smi() == stacks.Machine(None, (), "")


def test_a_hanging_nvidia_smi_is_reported(stacks, monkeypatch):
    def hang(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(stacks.subprocess, "run", hang)
    assert "timed out" in stacks.ask_nvidia_smi().note


def test_missing_wheels_are_named(stacks, monkeypatch, capsys):
    monkeypatch.delenv("TORCH_FIND_LINKS", raising=False)
    assert stacks.main(["--python", "3.9", "--explain-missing", "1.10.0+cu113"]) == 0
    line = capsys.readouterr().err
    for says in (
        "torch-1.10.0+cu113-cp39-cp39-linux_x86_64.whl",
        "torchvision-0.11.1+cu113-cp39-cp39-linux_x86_64.whl",
        "cannot be reached from here",
        "TORCH_FIND_LINKS=DIR make setup PYTHON=/path/to/python3.9",
    ):
        assert says in line


def test_torch_requirements_are_the_default_choice(stacks):
    lines = (ROOT / "requirements" / "torch.txt").read_text().splitlines()
    for python, marker in (((3, 8), '< "3.10"'), ((3, 11), '>= "3.10"')):
        expected = [
            f"{line}; python_version {marker}" for line in stacks.choose(python).stack.requirements
        ]
        assert [line for line in lines if marker in line] == expected
