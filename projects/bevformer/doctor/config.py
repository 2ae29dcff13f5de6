"""A config: the files that it names, whether its parts build, and the memory that training needs."""

import os.path as osp
from functools import partial

from projects.bevformer.doctor.environment import SHM_REMEDY
from projects.bevformer.doctor.findings import broken, error_line, ok, warning
from projects.bevformer.engine.data_sections import info_files, inner_sections

_SPLITS = ("train", "val", "test")
PREFETCHED_BATCHES = 2  # by each data worker: the default of torch's DataLoader


def read_config(path, options=None, data_root=None):
    """Read a config.

    Returns:
        The config, or None where it cannot be read, and a list of Finding.
    """
    from projects.bevformer.engine.config import load_config
    from projects.bevformer.engine.config_checks import check_sections

    try:
        cfg = load_config(path, options, data_root)
        check_sections(cfg, ["data"])
        splits = [inner_sections(cfg.data.get(split), f"data.{split}") for split in _SPLITS]
        sections = [pair for split in splits for pair in split]
    except FileNotFoundError as error:
        return None, [broken(str(path), error_line(error), "check the path")]
    except Exception as error:  # a config is code, it can raise anything
        return None, [broken(str(path), error_line(error), "mend the config")]
    for key, options in sections:
        if not info_files(options):
            return None, [broken(key, "has no ann_file", "mend the config")]
    return cfg, [ok(str(path), "can be read")]


def info_files_of(cfg):
    """Config key -> info file, each file once."""
    files = {}
    for split in _SPLITS:
        for key, options in inner_sections(cfg.data[split], f"data.{split}"):
            paths = info_files(options)
            for i, path in enumerate(paths):
                if path not in files.values():
                    files[key if len(paths) == 1 else f"{key}.ann_file.{i}"] = path
    return files


def check_config(cfg, gpu_mib=None, shm_mib=None, processes=1):
    """Check a config that could be read.

    Args:
        cfg: mmcv.Config.
        gpu_mib: memory of the GPU that it shall run on, or None.
        shm_mib: free shared memory of the machine, or None.
        processes: training processes on this machine.

    Returns:
        list of Finding.
    """
    from projects.bevformer.engine.memory import training_mib

    data_sets = partial(_check_data_sets, shm_mib=shm_mib, processes=processes)
    findings, memory = [], lambda cfg: _check_memory(training_mib(cfg), gpu_mib)
    for check in (_check_weights, _check_values, data_sets, _check_network, memory):
        try:
            findings += check(cfg)
        except Exception as error:  # a wrong key can raise anything anywhere
            findings.append(broken("config", error_line(error), "mend the config"))
    return findings


def _check_weights(cfg):
    from projects.bevformer.engine.checkpoint import load_checkpoint
    from projects.bevformer.engine.checkpoint_checks import check_training_state
    from projects.bevformer.engine.pretrained import pretrained_files

    findings = []
    named = {key: cfg.get(key) for key in ("load_from", "resume_from")}
    named.update(pretrained_files(cfg.get("model", {})))
    for key, value in named.items():
        if not value:
            continue
        if "://" in value:
            findings.append(
                warning(
                    key, f"{value} is downloaded when training starts", "needs the network once"
                )
            )
            continue
        try:
            checkpoint = load_checkpoint(value)
            if key == "resume_from":
                check_training_state(checkpoint, value)
            findings.append(ok(key, f"{value} can be read"))
        except (ValueError, OSError) as error:
            findings.append(broken(key, error_line(error), ""))
    return findings


def _check_values(cfg):
    from projects.bevformer.engine.config_checks import config_problems

    return [broken(key, what, "mend the config") for key, what in config_problems(cfg)]


def _check_data_sets(cfg, shm_mib, processes):
    from projects.bevformer.engine.data_loading import build_test_dataset, build_train_dataset

    findings = []
    for split in _SPLITS:
        sections = dict(inner_sections(cfg.data[split], f"data.{split}")).values()
        if not all(osp.isfile(path) for options in sections for path in info_files(options)):
            continue  # a finding of its own
        try:
            if split == "train":
                dataset = build_train_dataset(cfg)
                findings += _check_shared_memory(cfg, dataset, shm_mib, processes)
            else:
                build_test_dataset(cfg, split)
        except (ValueError, OSError) as error:
            findings.append(broken(f"data.{split}", error_line(error), ""))
    return findings


def _check_shared_memory(cfg, dataset, free_mib, processes):
    """Compare the batches that data workers keep ready in /dev/shm with its free space."""
    from projects.bevformer.engine.data_loading import train_option, workers_per_process
    from projects.bevformer.engine.seed import seeded

    workers = train_option(cfg, "workers_per_gpu", workers_per_process(cfg))
    samples = train_option(cfg, "samples_per_gpu", 1)
    if free_mib is None or workers == 0:
        return []
    with seeded(0):
        sample_mib = _tensor_bytes(dataset[0]) / 2**20
    batches = PREFETCHED_BATCHES * workers * processes
    needed_mib = batches * samples * sample_mib
    text = (
        f"training keeps up to {needed_mib:.0f} MiB of batches there ({batches} batches of {samples} x "
        f"{sample_mib:.1f} MiB), {free_mib} MiB are free"
    )
    return [
        warning("/dev/shm", text, SHM_REMEDY) if needed_mib > free_mib else ok("/dev/shm", text)
    ]


def _tensor_bytes(value):
    """Bytes of all tensors of a sample; only tensors go through shared memory."""
    import torch
    from mmcv.parallel import DataContainer

    if isinstance(value, DataContainer):
        return _tensor_bytes(value.data)
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return 0
    return sum(map(_tensor_bytes, value))


def _check_network(cfg):
    from projects.bevformer.engine.build import build_detector
    from projects.bevformer.engine.checkpoint import fit_checkpoint, load_checkpoint
    from projects.bevformer.engine.optimizer import check_parameter_options

    detector = build_detector(cfg, pretrained=True)
    check_parameter_options(cfg.get("optimizer") or {}, detector)
    millions = sum(weight.numel() for weight in detector.parameters()) / 1e6
    findings = [ok("model", f"builds; {millions:.1f} million parameters")]
    for key in ("load_from", "resume_from"):
        path, own = cfg.get(key), detector.state_dict()
        if not path or not osp.isfile(path):
            continue  # missing: a finding of its own
        try:
            fit = fit_checkpoint(load_checkpoint(path), own, path, complete=key == "resume_from")
        except ValueError as error:
            findings.append(broken(key, error_line(error), ""))
        else:
            findings.append(ok(key, f"has {len(fit.fitting)} of {len(own)} weights of the model"))
    return findings


def _check_memory(needed_mib, gpu_mib):
    if needed_mib is None:
        return [ok("memory", "no figure is known for this network")]
    text = f"training needs about {needed_mib / 1024:.1f} GiB of GPU memory"
    if gpu_mib is None:
        return [ok("memory", f"{text}; there is no GPU here")]
    text = f"{text}, this GPU has {gpu_mib / 1024:.1f} GiB free"
    if needed_mib <= gpu_mib:
        return [ok("memory", text)]
    remedy = (
        "less is needed with model.pts_bbox_head.transformer.encoder.with_cp=True, with "
        "model.img_backbone.with_cp=True too, with fp16.dtype=bfloat16 too, or with "
        "data.samples_per_gpu=1 (docs/performance.md)"
    )
    return [broken("memory", text, remedy)]
