"""Non-finite numbers: runs that would go on as dead ones, and weights that nobody may use."""

import math

import torch

from attack_rows.table import end_of, expect, expect_refusal, expect_success, row
from attack_rows.world import checkpoints, is_finite, load, losses

STOPS = (
    "ends by itself with iteration, loss or parameter, sample tokens and the last good checkpoint; "
    "only finite checkpoints, the one before usable"
)
_WHAT = {
    "loss": "loss_cls",
    "inf": "loss_cls",
    "gradient": "img_backbone|norm|head",
    "weight": "ballast",
}
_CASES = {name: (name,) for name in _WHAT}


def _expect_stop(result, work, how, at):
    expect_refusal(
        result, str(at), _WHAT[how], r"s\d+f\d+", rf"iter_{at - 1}\.pth|interrupted\.pth"
    )
    broken = [path.name for path in checkpoints(work) if not is_finite(path)]
    expect(not broken, f"checkpoints with non-finite numbers: {broken}")


@row("dead", STOPS, cases=_CASES, quick=("loss", "gradient"))
def bad_iteration(world, how):
    work, options = world.new(), {"model.bad": [(7, how)]}
    result = world.train(world.recipe(), work, **options)
    _expect_stop(result, work, how, 7)
    expect((work / "iter_6.pth").exists(), f"no iter_6.pth: {[p.name for p in checkpoints(work)]}")
    meta = load(work / "iter_6.pth")["meta"]
    expect(meta["iter"] == 6, f"iter_6.pth is of iteration {meta['iter']}")
    result = world.train(world.recipe(), work, "--auto-resume")
    expect_success(result, "the resume")
    expect(len(losses(work)) >= 10, f"only {len(losses(work))} iterations in the end")


@row("dead", STOPS + "; max_keep_ckpts keeps it")
def bad_iteration_and_few_checkpoints(world):
    work = world.new()
    options = {"model.bad": [(7, "gradient")], "checkpoint_config.max_keep_ckpts": 1}
    result = world.train(world.recipe(), work, **options)
    _expect_stop(result, work, "gradient", 7)
    expect((work / "iter_6.pth").exists(), f"no iter_6.pth: {[p.name for p in checkpoints(work)]}")


@row(
    "dead",
    "with no checkpoint yet, the state before the bad step is saved as interrupted.pth",
    cases={"first": 1, "fourth": 4},
)
def bad_iteration_before_any_checkpoint(world, at):
    work = world.new()
    options = {"model.bad": [(at, "loss")], "checkpoint_config": {"interval": 1}}
    result = world.train(world.recipe(), work, **options)
    expect_refusal(result, "loss_cls", "interrupted.pth")
    path = work / "interrupted.pth"
    expect(path.exists(), f"no interrupted.pth among {[p.name for p in work.iterdir()]}")
    expect(is_finite(path), "interrupted.pth has non-finite numbers")
    expect(load(path)["meta"]["iter"] == at - 1, f"it is of iteration {load(path)['meta']['iter']}")
    result = world.train(world.recipe(), work, "--auto-resume", checkpoint_config={"interval": 1})
    expect_success(result, "the resume")
    expect("interrupted.pth" in result.text, f"interrupted.pth not resumed: {end_of(result)}")


@row(
    "dead",
    "the bad iteration is left out, with a word; the run ends with finite weights",
    cases=_CASES,
)
def skipping(world, how):
    work = world.new()
    options = {"model.bad": [(7, how)], "non_finite": {"policy": "skip", "max_skipped": 2}}
    result = world.train(world.recipe(), work, **options)
    expect_success(result)
    expect(any("skip" in line.lower() and "7" in line for line in result.lines), "no word of it")
    expect(is_finite(checkpoints(work)[-1]), "the last checkpoint is not finite")
    shown = [one for one in losses(work) if one[2] is not None and not math.isfinite(one[2])]
    expect(not [one for one in losses(work) if one[2] == 0.0], "the log shows a loss of 0")
    expect(len(losses(work)) + bool(shown) >= 9, f"{len(losses(work))} iterations in the log")


@row("dead", "skipping has a bound: the run stops at the third bad iteration")
def skipping_for_ever(world):
    work, bad = world.new(), [(number, "loss") for number in range(5, 11)]
    options = {"model.bad": bad, "non_finite": {"policy": "skip", "max_skipped": 2}}
    result = world.train(world.recipe(), work, **options)
    expect_refusal(result, "loss_cls")
    expect(max((one[1] for one in losses(work)), default=0) <= 5, "trained further")


@row(
    "dead",
    "an unknown policy or bound is refused",
    cases={
        "policy": {"policy": "ignore"},
        "bound": {"policy": "skip", "max_skipped": -1},
        "text": "skip",
        "key": {"colour": "skip"},
    },
)
def senseless_policy(world, policy):
    expect_refusal(world.train(world.recipe(), world.new(), non_finite=policy), "non_finite")


@row("dead", "two processes, one of them with a NaN: both stop at the same iteration, one message")
def one_rank_has_a_nan(world):
    work = world.new()
    config = world.recipe()
    options = {"data.train.nan_sample": "s0f1", "checkpoint_config.interval": 1}
    result = world.train(config, work, processes=2, seconds=120, **options)
    expect(result.code not in (0, None), f"ended with {result.code}: {end_of(result)}")
    said = [line for line in result.lines if "s0f1" in line]
    expect(said, f"the sample is not named: {end_of(result, 5)}")
    ours = [line for line in result.lines if 'File "' in line and "projects/bevformer" in line]
    expect(not ours, f"a traceback of ours: {ours[:1]}")
    expect(all(map(is_finite, checkpoints(work))), "a checkpoint that is not finite")


def _spoiled(world, part, number):
    """The dummy task's checkpoint with a number that is not finite in one place."""
    content = load(world.trained() / "iter_4.pth")
    if part == "optimizer":
        states = content["optimizer"]["state"]
        states[sorted(states)[0]]["exp_avg"].view(-1)[0] = number
    else:
        content["state_dict"][part].view(-1)[0] = number
    path = world.new("spoiled") / "iter_4.pth"
    torch.save(content, str(path))
    return path


_SPOILED = {
    "nan": ("head.weight", math.nan),
    "inf": ("img_backbone.bias", math.inf),
    "running_var": ("norm.running_var", math.nan),
}


@row(
    "dead",
    "refused by load_from, --resume-from, eval and publish_model, with the tensor's name; inspect names it",
    cases=_SPOILED,
    quick=("nan",),
)
def non_finite_weights(world, part, number):
    path, config, name = _spoiled(world, part, number), world.recipe(), part.replace(".", r"\.")
    expect_refusal(
        world.train(config, world.new(), "--resume-from", path), name, what="--resume-from"
    )
    expect_refusal(world.train(config, world.new(), load_from=path), name, what="load_from")
    target = world.new() / "out.pth"
    expect_refusal(world.call("tools/publish_model.py", path, target), name, what="publish_model")
    expect(not target.exists(), "publish_model wrote its target")
    words = ("--device", "cpu", "--work-dir", world.new())
    expect_refusal(world.call("tools/eval.py", config, path, *words), name, what="eval")
    result = world.call("tools/inspect_checkpoint.py", path)
    expect("Traceback" not in result.text and part in result.text, f"inspect: {end_of(result)}")


@row("dead", "resume refuses an optimizer state that is not finite")
def non_finite_optimizer(world):
    path = _spoiled(world, "optimizer", math.nan)
    expect_refusal(
        world.train(world.recipe(), world.new(), "--resume-from", path), "optimizer|exp_avg"
    )


@row("dead", "--auto-resume takes the one before a checkpoint with NaN weights")
def non_finite_newest(world):
    work = world.new()
    expect_success(
        world.train(world.recipe(), work, "--max-iters", 3, **{"checkpoint_config.interval": 1})
    )
    content = load(work / "iter_3.pth")
    content["state_dict"]["head.weight"].fill_(math.nan)
    torch.save(content, str(work / "iter_3.pth"))
    result = world.train(world.recipe(), work, "--auto-resume", "--max-iters", 4)
    expect_success(result)
    expect(f"resumed {work}/iter_2.pth" in result.text, f"not from iter_2: {end_of(result, 6)}")


@row(
    "dead",
    "a std of 0 is refused",
    cases={"one": [58.395, 0.0, 57.375], "negative": [-1.0, 1.0, 1.0], "nan": ["nan", 1.0, 1.0]},
)
def zero_std(world, std):
    std = ", ".join(f"float('{number}')" for number in std)
    text = f"torchvision_statistics = dict(mean=[0.0, 0.0, 0.0], std=[{std}], to_rgb=True)\n"
    result = world.train(world.small_recipe(text), world.new(), "--max-iters", 1, "--no-validate")
    expect_refusal(result, "std")
