"""Modelled memory of training steps, for docs/performance.md: tiny, small and base, every preset.

    python benchmarks/bench_memory.py [--quick]

Writes JSON to work_dirs/benchmarks. How it is computed: memory_model.py.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

OUT = Path("work_dirs/benchmarks")
PRESETS = ["default", "low_memory", "low_memory_backbone", "bf16"]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny only")
    args = parser.parse_args(argv)
    if importlib.util.find_spec("torch._subclasses.fake_tensor") is None:
        print("skipped: the memory model needs torch 2.1")
        return
    from memory_model import main as model

    cases = [("bevformer_tiny", "configs/bevformer/bevformer_tiny.py", [])]
    if not args.quick:
        cases += [
            ("bevformer_small", "configs/bevformer/bevformer_small.py", []),
            ("config", "configs/config.py", ["--bev", "50", "100", "150", "200", "300"]),
        ]
    for name, config, bev in cases:
        out = str(OUT / f"memory_{name}.json")
        model(["--config", config, *bev, "--presets", *PRESETS, "--out", out])


if __name__ == "__main__":
    main()
