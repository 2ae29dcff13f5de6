#!/usr/bin/env python
"""Check the installation, a data set or a config, and say how to mend what is wrong.

    python tools/doctor.py
    python tools/doctor.py --data-root data/nuscenes --canbus data [--deep]
    python tools/doctor.py --config configs/config.py

One line per finding: [ok], [warning] (works, but may surprise) or [broken]. The exit code is 1 when
something is broken.
"""

import sys
from pathlib import Path

import bootstrap  # noqa: F401

from projects.bevformer.cli.arguments import add_options_argument, make_parser, parse_options
from projects.bevformer.cli.errors import silence_notices
from projects.bevformer.doctor.environment import check_environment
from projects.bevformer.doctor.findings import BROKEN, OK, WARNING, broken, warning
from projects.bevformer.doctor.machine import inspect_environment


def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("--data-root", help="nuScenes root to check [that of --config]")
    parser.add_argument(
        "--canbus", help="folder that contains can_bus [in the data root or next to it]"
    )
    parser.add_argument("--config", help="config to check, with the info files that it names")
    add_options_argument(parser, "--cfg-options", "override config keys")
    parser.add_argument("--deep", action="store_true", help="decode every image, not only a few")
    parser.add_argument("--workers", type=int, default=1, help="processes for --deep [1]")
    parser.add_argument("--quiet", action="store_true", help="only warnings and what is broken")
    args = parser.parse_args(argv)
    if not (args.data_root or args.config):
        for flag in ("canbus", "deep"):
            if getattr(args, flag):
                parser.error(f"--{flag} is about a data set: give --data-root or --config too")
    if args.cfg_options and not args.config:
        parser.error("--cfg-options overrides keys of a config: give --config too")
    if args.workers < 1:
        parser.error(f"--workers {args.workers}: it must be at least 1")
    return args


def main():
    args = parse_args()
    silence_notices()
    counts = {OK: 0, WARNING: 0, BROKEN: 0}
    for finding in diagnose(args):
        counts[finding.level] += 1
        if not (args.quiet and finding.level == OK):
            print(finding.line(), flush=True)
    print(f"{counts[OK]} ok, {counts[WARNING]} warnings, {counts[BROKEN]} broken")
    if counts[BROKEN]:
        sys.exit(1)


def diagnose(args):
    """Findings, as they are made."""
    environment = inspect_environment()
    yield from check_environment(environment)
    if not (args.data_root or args.config):
        return
    if environment.import_errors:
        yield warning(
            "data set and config", "are not checked where imports fail", "mend the imports first"
        )
        return
    yield from diagnose_data_and_config(args, environment)


def diagnose_data_and_config(args, environment):
    # Not at the head of the file: these need packages that may be missing, which is a finding.
    from tqdm import tqdm

    from projects.bevformer.doctor.config import check_config, info_files_of, read_config
    from projects.bevformer.doctor.data_set import check_data_set
    from projects.bevformer.doctor.info_files import check_info_files
    from projects.bevformer.engine.data_sections import inner_sections

    cfg, data_root, info_files = None, args.data_root, {}
    if args.config is not None:
        try:
            options = parse_options(args.cfg_options)
        except ValueError as error:
            yield broken("--cfg-options", str(error), "mend the option")
            return
        cfg, findings = read_config(args.config, options, args.data_root)
        yield from findings
        if cfg is not None:
            _, options = next(inner_sections(cfg.data.train, "data.train"))
            data_root = options.get("data_root") or "."
            info_files = info_files_of(cfg)
    if data_root is not None:
        for path in sorted(Path(data_root).glob("*_infos_*.pkl")):
            if str(path) not in map(str, map(Path, info_files.values())):
                info_files[f"info file {path.name}"] = str(path)
        yield from check_data_set(
            data_root,
            args.canbus,
            args.deep,
            args.workers,
            progress=lambda images, total: tqdm(
                images, "images", total, unit="image", disable=not args.deep
            ),
            info_files=list(info_files.values()),
        )
        yield from check_info_files(info_files, data_root)
    if cfg is not None:
        free = min((gpu.free_mib for gpu in environment.gpus), default=None)
        processes = max(1, len(environment.gpus))
        yield from check_config(cfg, free, environment.shm_free_mib, processes)


if __name__ == "__main__":
    main()
