"""All rows, in the order in which they run."""

from attack_rows import (  # noqa: F401
    resumes,
    dead_runs,
    lost_processes,
    signals,
    file_systems,
    hostile_files,
    hostile_paths,
    wrong_checkpoints,
)  # isort: skip
