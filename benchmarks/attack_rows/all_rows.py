"""All rows, in the order in which they run."""

from attack_rows import (  # noqa: F401
    dead_runs,
    file_systems,
    hostile_data,
    hostile_files,
    hostile_paths,
    lost_processes,
    resumes,
    signals,
    wrong_checkpoints,
    wrong_input,
)  # isort: skip
