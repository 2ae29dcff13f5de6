"""Arguments and configs that mean nothing: one line with what and where, before anything is computed."""

import json

from attack_rows.table import end_of, expect, expect_refusal, row
from attack_rows.world import losses

_LINE = "{case}: refused in one line that names it, before the first iteration"

# Key of the config and value -> words of the message.
_VALUES = {
    "workers_as_text": ({"data.workers_per_gpu": "two"}, "workers_per_gpu"),
    "workers_negative": ({"data.workers_per_gpu": -1}, "workers_per_gpu"),
    "workers_as_fraction": ({"data.workers_per_gpu": 1.5}, "workers_per_gpu"),
    "samples_as_text": ({"data.samples_per_gpu": "two"}, "samples_per_gpu"),
    "samples_0": ({"data.samples_per_gpu": 0}, "samples_per_gpu"),
    "samples_negative": ({"data.samples_per_gpu": -2}, "samples_per_gpu"),
    "epochs_as_text": ({"runner.max_epochs": "many"}, "max_epochs"),
    "epochs_0": ({"runner.max_epochs": 0}, "max_epochs"),
    "epochs_negative": ({"runner.max_epochs": -1}, "max_epochs"),
    "epochs_as_fraction": ({"runner.max_epochs": 1.5}, "max_epochs"),
    "epochs_nan": ({"runner.max_epochs": None}, "max_epochs|max_iters"),
    "total_epochs_as_text": ({"total_epochs": "many"}, "epochs"),
    "iterations_0": ({"runner": {"type": "IterBasedRunner", "max_iters": 0}}, "max_iters"),
    "iterations_as_text": ({"runner": {"type": "IterBasedRunner", "max_iters": "x"}}, "max_iters"),
    "runner_as_text": ({"runner": "EpochBasedRunner"}, "runner"),
    "checkpoints_0": ({"checkpoint_config.interval": 0}, "checkpoint_config.interval|interval"),
    "checkpoints_as_text": ({"checkpoint_config.interval": "often"}, "interval"),
    "keep_0": ({"checkpoint_config.max_keep_ckpts": 0}, "max_keep_ckpts"),
    "keep_as_text": ({"checkpoint_config.max_keep_ckpts": "all"}, "max_keep_ckpts"),
    "on_error": ({"checkpoint_config.on_error": "ignore"}, "on_error"),
    "checkpoint_config_as_number": ({"checkpoint_config": 1}, "checkpoint_config"),
    "log_0": ({"log_config.interval": 0}, "interval"),
    "log_as_text": ({"log_config.interval": "often"}, "interval"),
    "log_config_as_list": ({"log_config": [1]}, "log_config"),
    "evaluation_0": ({"evaluation": {"interval": 0}}, "interval"),
    "evaluation_as_text": ({"evaluation": {"interval": "often"}}, "interval"),
    "evaluation_as_number": ({"evaluation": 1}, "evaluation"),
    "grad_clip_as_number": ({"optimizer_config.grad_clip": 35}, "grad_clip"),
    "grad_clip_as_text": ({"optimizer_config.grad_clip": "35"}, "grad_clip"),
    "max_norm_as_text": ({"optimizer_config.grad_clip.max_norm": "x"}, "max_norm"),
    "max_norm_0": ({"optimizer_config.grad_clip.max_norm": 0}, "max_norm"),
    "max_norm_negative": ({"optimizer_config.grad_clip.max_norm": -1}, "max_norm"),
    "cumulative_0": ({"optimizer_config": {"type": "GradientCumulativeOptimizerHook",
                                           "cumulative_iters": 0}}, "cumulative_iters"),
    "cumulative_as_text": ({"optimizer_config": {"type": "GradientCumulativeOptimizerHook",
                                                 "cumulative_iters": "x"}}, "cumulative_iters"),
    "lr_as_text": ({"optimizer.lr": "fast"}, "lr"),
    "lr_negative": ({"optimizer.lr": -1e-3}, "lr|learning rate"),
    "lr_infinite": ({"optimizer.lr": 1e400}, "lr|inf"),
    "weight_decay_as_text": ({"optimizer.weight_decay": "x"}, "weight_decay"),
    "betas_as_number": ({"optimizer.betas": 0.9}, "betas"),
    "optimizer_as_text": ({"optimizer": "AdamW"}, "optimizer"),
    "optimizer_unknown": ({"optimizer.type": "Adamm"}, "Adamm"),
    "warmup_as_text": ({"lr_config.warmup": "linear", "lr_config.warmup_iters": "x"}, "warmup_iters"),
    "warmup_unknown": ({"lr_config.warmup": "slow", "lr_config.warmup_iters": 5}, "warm"),
    "warmup_negative": ({"lr_config.warmup": "linear", "lr_config.warmup_iters": -5}, "warmup_iters"),
    "policy_unknown": ({"lr_config.policy": "Cosine Annealing"}, "policy|Cosine"),
    "work_dir_as_number": ({"work_dir": 5}, "work_dir"),
    "load_from_as_number": ({"load_from": 5}, "load_from"),
    "load_from_of_a_folder": ({"load_from": "/tmp"}, "/tmp"),
    "resume_from_as_list": ({"resume_from": ["a"]}, "resume_from"),
    "load_from_other_classes_as_text": ({"load_from_other_classes": "no"}, "load_from_other_classes"),
    "fp16_as_text": ({"fp16": "bfloat16"}, "fp16"),
    "fp16_dtype": ({"fp16": {"dtype": "float8"}}, "dtype|float8"),
    "loss_scale_as_text": ({"fp16": {"dtype": "float16", "loss_scale": "x"}}, "loss_scale"),
    "log_level": ({"log_level": "LOUD"}, "log_level|LOUD"),
    "workflow": ({"workflow": [["val", 1]]}, "workflow"),
    "workflow_as_text": ({"workflow": "train"}, "workflow"),
    "custom_hooks_as_number": ({"custom_hooks": 5}, "custom_hooks"),
    "momentum_of_ema": ({"custom_hooks": [{"type": "EMAHook", "momentum": 2}]}, "momentum"),
    "momentum_as_text": ({"custom_hooks": [{"type": "EMAHook", "momentum": "x"}]}, "momentum"),
    "dist_params_as_text": ({"dist_params": "nccl"}, "dist_params"),
    "data_as_list": ({"data": [1]}, "data"),
    "train_as_list_of_text": ({"data.train": ["x"]}, "data.train"),
    "model_as_text": ({"model": "AttackDetector"}, "model"),
    "model_unknown": ({"model.type": "AttackDetecto"}, "AttackDetecto"),
    "non_finite_of_another_key": ({"non_finite": {"police": "skip"}}, "non_finite"),
    "find_unused_as_text": ({"find_unused_parameters": "yes"}, "find_unused_parameters"),
    "mp_start_method": ({"mp_start_method": "forkk"}, "mp_start_method"),
    "opencv_threads_as_text": ({"opencv_num_threads": "x"}, "opencv_num_threads"),
    "auto_scale_lr_0": ({"auto_scale_lr": {"base_batch_size": 0}}, "base_batch_size"),
    "tf32_as_text": ({"tf32": "maybe"}, "tf32"),
    "seed_in_config_as_text": ({"seed": "x"}, "seed"),
}  # fmt: skip


@row(
    "wrong",
    _LINE,
    cases={key: (value,) for key, value in _VALUES.items()},
    quick=("grad_clip_as_number", "checkpoints_0"),
)
def value(world, case):
    options, words = case
    work = world.new()
    flags = ("--autoscale-lr",) if "auto_scale_lr" in options else ()
    words_of_tool = _words(world, work, flags, options)
    result = world.call(*words_of_tool, seconds=60)
    expect_refusal(result, words)
    expect(not losses(work), f"after {len(losses(work))} iterations")


def _words(world, work, flags, options):
    from attack_rows.world import train_words

    words = train_words(world.recipe(), work, *flags, **options)
    if "work_dir" in options:
        at = words.index("--work-dir")
        del words[at : at + 2]
    return words


_SMALL = {
    "bev_of_0": ("bev_h = 0\n", "bev_h|BEV"),
    "bev_negative": ("bev_w = -5\n", "bev_w|BEV"),
    "bev_as_text": ("bev_h = 'x'\n", "bev_h|BEV"),
    "scale_0": ("image_scale = 0\n", "scale"),
    "scale_0.001": ("image_scale = 0.001\n", "scale"),
    "scale_negative": ("image_scale = -1\n", "scale"),
    "scale_1000": ("image_scale = 1000\n", "scale|memory"),
    "divisor_0": ("image_divisor = 0\n", "divisor"),
    "divisor_negative": ("image_divisor = -32\n", "divisor"),
    "queue_of_0": ("queue_length = 0\n", "queue_length"),
    "queue_of_100": ("queue_length = 100\n", "queue_length|queue"),
    "queue_as_text": ("queue_length = 'x'\n", "queue_length"),
    "max_num_above": ("model['pts_bbox_head'] = dict(bbox_coder=dict(max_num=100000))\n", "max_num"),
    "max_num_0": ("max_num = 0\n", "max_num"),
    "queries_0": ("num_query = 0\n", "num_query|max_num"),
    "embed_dims_0": ("embed_dims = 0\n", "embed_dims|num_feats|out_channels"),
    "heads_do_not_divide": ("num_heads = 7\n", "num_heads|embed_dims"),
    "points_0": ("num_points = 0\n", "num_points"),
    "levels_0": ("num_levels = 0\n", "num_levels|num_outs"),
    "dropout_2": ("dropout = 2.0\n", "dropout"),
    "dropout_as_text": ("dropout = 'x'\n", "dropout"),
    "empty_pipeline": ("train_pipeline = []\n", "pipeline"),
    "empty_test_pipeline": ("test_pipeline = []\n", "pipeline"),
    "range_reversed": ("point_cloud_range = [51.2, 51.2, 3.0, -51.2, -51.2, -5.0]\n", "point_cloud_range|range"),
    "range_short": ("point_cloud_range = [51.2, 51.2, 3.0]\n", "point_cloud_range|range"),
    "range_empty": ("point_cloud_range = [0, 0, 0, 0, 0, 0]\n", "point_cloud_range|range"),
    "range_nan": ("point_cloud_range = [-51.2, -51.2, -5.0, 1e999, 51.2, 3.0]\n", "point_cloud_range|range|finite"),
    "classes_empty": ("class_names = []\n", "class|max_num"),
    "classes_twice": ("class_names = ['car', 'car']\n", "class"),
    "classes_as_text": ("class_names = 'car'\n", "class"),
    "mean_short": ("torchvision_statistics = dict(mean=[1.0], std=[1.0], to_rgb=True)\n", "mean|std|img_norm"),
    "data_root_as_number": ("data_root = 5\n", "data_root"),
    "info_files_missing": ("info_files = '/nowhere/x_'\n", "nowhere"),
}  # fmt: skip


@row(
    "wrong",
    "a recipe with {case}: one line in train, eval and browse_dataset",
    cases={key: (value,) for key, value in _SMALL.items()},
)
def recipe(world, case):
    text, words = case
    config, wrong, work = world.small_recipe(text), [], world.new()
    _, weights = world.small_trained()
    more = ("--device", "cpu", "--work-dir", work)
    tries = {
        "train": ("tools/train.py", config, *more, "--max-iters", 1, "--no-validate"),
        "eval": ("tools/eval.py", config, weights, *more),
        "browse_dataset": ("tools/browse_dataset.py", config, "--out", world.new()),
    }
    for what, words_of_tool in tries.items():
        result = world.call(*words_of_tool, seconds=90)
        try:
            if what == "train" and "test_pipeline" not in text:
                expect_refusal(result, words, what=what)
            expect(result.code is not None and result.code >= 0, f"{what}: {result.code}")
            expect("Traceback" not in result.text, f"{what}: traceback: {end_of(result)}")
        except Exception as error:
            wrong.append(str(error))
    expect(not losses(work), f"trained {len(losses(work))} iterations")
    expect(not wrong, "; ".join(wrong))


_FLAGS = {
    # tool and its flags -> words of the message; C is a config, W are weights, O is a folder
    "seed_negative": ("train C --seed -1", "seed"),
    "seed_too_large": ("train C --seed 1099511627776", "seed"),
    "seed_of_eval": ("eval C W --seed -1", "seed"),
    "gpu_id_without_gpu": ("train C --gpu-id 5", "gpu"),
    "gpu_ids_without_gpu": ("train C --gpu-ids 3 4", "gpu"),
    "gpu_id_negative": ("train C --gpu-id -1", "gpu"),
    "max_iters_0": ("train C --max-iters 0", "max-iters|max_iters"),
    "max_iters_negative": ("train C --max-iters -3", "max-iters|max_iters"),
    "option_without_equals": ("train C --cfg-options word", "word"),
    "option_of_eval_without_equals": ("eval C W --cfg-options word", "word"),
    "option_without_key": ("train C --cfg-options =5", "KEY|=5"),
    "option_unknown": ("train C --cfg-options model.depthh=5", "depthh"),
    "option_into_a_number": ("train C --cfg-options runner.max_epochs.x=5", "max_epochs"),
    "option_index_too_large": ("train C --cfg-options log_config.hooks.7.type=x", "hooks"),
    "option_with_brackets": ("train C --cfg-options data.samples_per_gpu=[1", "bracket|samples_per_gpu"),
    "option_of_a_dict": ("train C --cfg-options non_finite=dict(policy='skip',max_skipped=2)", "non_finite"),
    "option_of_many_parts": ("train C --cfg-options runner.max_epochs=1,2", "max_epochs"),
    "eval_option_unknown": ("eval C W --eval-options colour=red", "colour"),
    "eval_option_without_equals": ("eval C W --eval-options colour", "colour"),
    "metric_unknown": ("eval C W --eval mAPx", "mAPx"),
    "fraction_0": ("eval C W --fraction 0", "fraction"),
    "fraction_nan": ("eval C W --fraction nan", "fraction"),
    "scenes_unknown": ("eval C W --scenes nowhere", "nowhere|scene"),
    "out_in_no_folder": ("eval C W --out C/deep/results.pkl", "recipe.py|--out"),
    "out_is_a_folder": ("eval C W --out O.pkl", r"\.pkl"),
    "show_dir_is_a_file": ("eval C W --show-dir C", "recipe.py|show"),
    "work_dir_is_a_file": ("eval C W --work-dir C", "recipe.py|work"),
    "prefix_is_a_file": ("eval C W --eval-options jsonfile_prefix=C", "recipe.py|jsonfile_prefix"),
    "score_thr_nan": ("eval C W --show-dir O --show-score-thr nan", "score-thr|score_thr|show"),
    "no_config": ("train /nowhere.py", "nowhere"),
    "config_is_a_folder": ("train O", "."),
    "no_weights": ("eval C /nowhere.pth", "nowhere"),
    "results_missing": ("eval C --results /nowhere.json", "nowhere"),
    "publish_nothing": ("publish /nowhere.pth O/x.pth", "nowhere"),
    "publish_into_no_folder": ("publish W C/deep/x.pth", "recipe.py"),
    "publish_onto_a_folder": ("publish W O", "."),
    "inspect_nothing": ("inspect /nowhere.pth", "nowhere"),
    "inspect_a_folder": ("inspect O", "."),
    "doctor_workers": ("doctor --config C --workers 0", "workers"),
    "doctor_no_root": ("doctor --data-root /nowhere", "nowhere"),
}  # fmt: skip


@row(
    "wrong",
    _LINE,
    cases=_FLAGS,
    quick=("seed_negative", "option_of_a_dict"),
)
def flag(world, line, words):
    tools = {
        "train": "train", "eval": "eval", "publish": "publish_model", "inspect": "inspect_checkpoint",
        "browse": "browse_dataset", "doctor": "doctor",
    }  # fmt: skip
    config, folder = world.recipe(), world.new()
    (folder.parent / f"{folder.name}.pkl").mkdir()
    names = {"C": config, "W": world.trained() / "iter_4.pth", "O": folder}
    tool, *rest = line.split(" ")
    rest = [
        str(names[word]) if word in names else word.replace("=C", f"={config}")
        if word.endswith("=C") else f"{folder}{word[1:]}" if word.startswith(("O/", "O."))
        else f"{config}{word[1:]}" if word.startswith("C/") else word
        for word in rest
    ]  # fmt: skip
    if tool in ("train", "eval") and "--work-dir" not in rest:
        rest += ["--work-dir", world.new()]
    if tool in ("train", "eval") and "gpu" not in line:
        rest += ["--device", "cpu"]
    result = world.call(f"tools/{tools[tool]}.py", *rest)
    if tool == "doctor":
        expect(result.code != 0 and "Traceback" not in result.text, end_of(result))
        expect(any(word in result.text for word in words.split("|")), end_of(result))
    else:
        expect_refusal(result, words)


_EMPTY = {
    "empty": "",
    "only_a_comment": "# nothing\n",
    "no_python": "model = dict(\n",
    "raises": "raise RuntimeError('no')\n",
    "no_such_base": "_base_ = ['nowhere.py']\n",
    "base_of_itself": "_base_ = ['recipe.py']\n",
    "base_as_number": "_base_ = 5\n",
    "recursion": "def f():\n    return f()\nf()\n",
    "binary": "\x00\x01\x02",
    "dict_with_numbers_as_keys": "model = dict(type='X', y={7: 'a', 8: 'b'})\n",
    "set_as_value": "model = {1, 2}\n",
    "json_list": None,
}


@row(
    "wrong",
    "a config with {case}: one line in every tool that takes one",
    cases={key: (key,) for key in _EMPTY},
    quick=("empty",),
)
def config(world, name):
    from attack_rows.hostile_data import config_readers

    text = _EMPTY[name]
    path = (
        world.file("recipe.py", text)
        if text is not None
        else world.file("recipe.json", json.dumps([1]))
    )
    good, wrong = world.trained() / "iter_4.pth", []
    for what, started in config_readers(world, path, good):
        result = started.finish(60)
        try:
            if what == "doctor":  # it lists findings
                expect("Traceback" not in result.text and result.code, f"doctor: {end_of(result)}")
            else:
                expect_refusal(result, what=what)
        except Exception as error:
            wrong.append(str(error))
    expect(not wrong, "; ".join(wrong[:3]))


@row("wrong", "numbers as keys of a dict in a working config: the run goes well, or one line")
def numbers_as_keys(world):
    config = world.recipe("evaluation = None\nplan = {7: 'a', 8: 'b'}\n")
    result = world.train(config, world.new(), "--max-iters", 1)
    expect("Traceback" not in result.text, f"traceback: {end_of(result)}")


_RESULTS = {
    "empty_list": {"meta": {}, "results": {}},
    "no_results": {"meta": {}},
    "list": [1, 2],
    "number": 5,
    "text_boxes": {"meta": {}, "results": {"a": "boxes"}},
    "nan_box": None,
    "unknown_token": {"meta": {}, "results": {"nowhere": []}},
}


@row(
    "wrong",
    "a result file with {case}: one line from eval --results and visualize",
    cases={key: (key,) for key in _RESULTS},
)
def results(world, name):
    config, content = world.small_recipe(), _RESULTS[name]
    if name == "nan_box":
        box = {"sample_token": "a", "translation": [float("nan")] * 3, "size": [1, 1, 1]}
        content = {"meta": {}, "results": {"a": [box]}}
    path, wrong = world.file("results_nusc.json", json.dumps(content)), []
    for script, words in (
        ("tools/eval.py", ("--results", path, "--work-dir", world.new())),
        ("tools/visualize.py", (path, "--out-dir", world.new())),
    ):
        result = world.call(script, config, *words)
        try:
            expect_refusal(result, what=script)
        except Exception as error:
            wrong.append(str(error))
    expect(not wrong, "; ".join(wrong))
