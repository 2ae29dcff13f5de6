"""Makes `projects` importable in a clone that is not installed; every tool imports this first."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
