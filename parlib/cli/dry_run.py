"""`parlib.run PARAMS --dry-run`: everything that can go wrong in a training is looked at before it begins, in less than a minute."""

import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import torch

from parlib.attack.poison import attacked
from parlib.attack.triggers import LEARNED
from parlib.cache import cache_dir
from parlib.cli.cost import GB, cost, settings
from parlib.cli.plan import Planned
from parlib.cli.rows import ROWS, look_at_pairs
from parlib.data.pairs import Pairs, class_index
from parlib.experiments.clean_params import Clean
from parlib.experiments.examined import Examined
from parlib.experiments.inspection import Inspect
from parlib.experiments.lineage import check_others, open_checkpoint, preparation
from parlib.experiments.params import Params, Training
from parlib.experiments.poison import Poison
from parlib.experiments.subject import planted_trigger
from parlib.experiments.trials import Cleanings, Sweep
from parlib.external.files import Source
from parlib.external.rows import label_names
from parlib.external.stream import captioned, labelled
from parlib.model.checkpoints import DOWNLOADED, SOURCES, check_encoder, checkpoint_of, tagged
from parlib.model.clip import Clip, architecture, create
from parlib.records.store import located, outputs
from parlib.train.compute import Compute, check_device

_UNKNOWN = "not measured: it is the GPU's"
_Run = TypeVar("_Run", bound=Training)


def dry_run(runs: list[Planned], needs: Mapping[str, Collection[str]]) -> int:
    """Print what each run would meet; 1 where something will not do. needs: by run what the same command makes before it."""
    good = True
    for run in runs:
        print(f"{run.id}:", flush=True)
        for what, found, fine in rehearse(run.params, needs[run.id]):
            print(f"  {'ok' if fine else 'NO'}  {what}: {found}", flush=True)
            good = good and fine
    print("nothing was trained; all that could be looked at will do" if good else "nothing was trained; mend what is marked NO")
    return 0 if good else 1


Steps = list[tuple[str, Callable[[], str]]]


def rehearse(params: Params, first: Collection[str] = ()) -> list[tuple[str, str, bool]]:
    """What a run would meet, as (what, what was found, whether it will do); nothing is kept. For a checkpoint that would be downloaded a
    random model of its encoder stands in. Of many cleanings: each attacked model and each set of clean pairs once. first: runs that will
    have been made before it; what can't be seen without them waits, and will do.
    """
    if not isinstance(params, Poison | Clean | Cleanings):
        return [("run", "reads records and draws: there is nothing to look at", True)]
    found, unseen = [], ""
    for what, look in _of_many(params) if isinstance(params, Cleanings) else _of_one(params):
        try:
            found.append((what, look(), True))
        except Exception as error:  # whatever it is, better now than in an hour
            lacks = isinstance(error, KeyError)  # the checkpoint
            missing = first if isinstance(error, FileNotFoundError) else ()
            waits = unseen if lacks else next((f"waits for {run}" for run in missing if run in str(error)), "")
            unseen = waits if what.startswith("checkpoint") else unseen
            found.append((what, waits or ("needs the checkpoint" if lacks else " ".join(str(error).split())), bool(waits)))
    return found


def _of_one(params: Poison | Clean) -> Steps:
    held: dict[str, Clip] = {}
    steps, params, there = _on_device(params)
    steps += [("checkpoint", lambda: _checkpoint(params, held))]
    if isinstance(params, Examined):
        steps += [("examined model", lambda: _examined(params))]
    shared: Steps = [*_evaluated(params), ("triggers", lambda: _triggers(params))]
    disk = ("disk", lambda: _disk([params], held["clip"]))
    if isinstance(params, Inspect) and ":" in params.data and params.takes_pairs:
        shared = [(f"pictures {params.data}", lambda: _pairs(params)), *shared]
    if isinstance(params, Examined) and not params.trains:
        return [*steps, *shared, disk]
    steps += [(f"pairs {params.data}", lambda: _pairs(params)), *shared, ("settings", lambda: settings(params)), disk]
    return [*steps, ("time and memory", lambda: cost([params], held["clip"]) if there else _UNKNOWN)]


def _of_many(params: Cleanings) -> Steps:
    """The looks at one run of 02 for each attacked model and each set of clean pairs of many cleanings."""
    held: dict[str, Clip] = {}
    device = "cuda" if params.gpus else "cpu"
    trials = [trial.model_copy(update={"compute": trial.compute.model_copy(update={"device": device})}) for trial in params.trials()]
    steps, _, there = _on_device(trials[0])
    steps = [] if params.ray_address else steps  # the GPUs are the cluster's
    trials = [_on_device(trial)[1] for trial in trials]
    models = list({trial.attacked_model: trial for trial in reversed(trials)}.values())[::-1]
    for trial in models:
        name = trial.poisoned or trial.planting().id
        steps += [(f"checkpoint {name}", lambda trial=trial: _checkpoint(trial, held))]
        steps += [(f"triggers on {name}", lambda trial=trial: _triggers(trial))]
    sets: dict[tuple, Clean] = {}
    for trial in sorted(trials, key=lambda trial: -int(trial.batch or 0)):  # of each set the one with the largest batch
        sets.setdefault(trial.clean_set, trial)
    steps += [(f"pairs {trial.data}", lambda trial=trial: _pairs(trial)) for trial in sets.values()]
    for trial in {(trial.side, trial.target): trial for trial in models}.values():
        steps += _evaluated(trial)
    first = sorted(trials, key=lambda trial: trial.encoder != models[-1].encoder)  # the model that is held last is timed
    asked = first[:1] * params.samples if isinstance(params, Sweep) and params.samples else first  # optuna's corners are no trials
    at_once = int(1 / min(1, params.gpus)) if params.gpus else max(1, (os.cpu_count() or 1) // params.cpus)
    steps += [("settings", lambda: _settings(trials)), ("disk", lambda: _disk(asked, held["clip"]))]
    return [*steps, ("time and memory", lambda: cost(asked, held["clip"], min(at_once, len(asked))) if there else _UNKNOWN)]


def _on_device(params: _Run) -> tuple[Steps, _Run, bool]:
    """A look at the GPU, where a run asks for one; the run, on the CPU where there is none, so that all else can be looked at; and whether
    it is there.
    """
    if params.compute.device == "cpu":
        return [], params, True
    there = torch.cuda.is_available()
    here = params if there else params.model_copy(update={"compute": params.compute.model_copy(update={"device": "cpu"})})
    return [("device", lambda compute=params.compute: _device(compute))], here, there


def _device(compute: Compute) -> str:
    check_device(compute)
    return f"{torch.cuda.get_device_name()}, {torch.cuda.device_count()} of them"


def _settings(trials: list[Clean]) -> str:
    """How the trials train: what they share, and what differs."""
    said = [settings(trial) for trial in trials]
    return said[0] + (f"; the last of {len(said)} settings: {said[-1]}" if len(said) > 1 else "")


def _evaluated(params: Poison | Clean) -> Steps:
    steps: Steps = []
    if params.evaluation:
        steps.append((f"evaluation {params.evaluation}", lambda: _labels(params)))
    if params.retrieval:
        steps.append((f"retrieval {params.retrieval}", lambda: _captions(params)))
    return steps


def _poisoning(params: Poison | Clean) -> dict[str, Any] | None:
    """The record of the poisoned model that is cleaned, where it is a run's."""
    return params.poisoning() if isinstance(params, Clean) and not params.poisoned.startswith(SOURCES) else None


def _checkpoint(params: Poison | Clean, held: dict[str, Clip]) -> str:
    record = _poisoning(params)
    if isinstance(params, Clean):
        source = f"local-dir:{located(record['artifacts']['weights']).parent}" if record else params.poisoned
    else:
        source = checkpoint_of(params.base, params.encoder) if params.base else ""
    fetched = source.startswith(DOWNLOADED)
    if source.startswith("open_clip:"):
        check_encoder(source, architecture(tagged(source)[0]), params.encoder)
    held["clip"] = clip = create(params.encoder) if fetched or not source else open_checkpoint(source, params)
    clip.net.to(params.compute.device)
    count = sum(parameter.numel() for parameter in clip.net.parameters())
    said = f"{source or 'pretrained here'}, {clip.side} px, {count / 1e6:.1f} million weights" + (f", {clip.form}" if clip.form else "")
    if fetched:
        return f"{said}, not downloaded for this: no more is known of it"
    return said + (f", poisoned by {record['run']}" if record else "")


def _examined(params: Examined) -> str:
    found = params.inputs()["poisoned" if params.method == "none" else "cleaned"]
    return f"{params.method}, {found.run}"


def _pairs(params: Poison | Clean) -> str:
    return look_at_pairs(params) if ":" in params.data else "drawn here"


def _labels(params: Poison | Clean) -> str:
    names = label_names(Source.of(params.evaluation))
    asked = not (isinstance(params, Inspect) and params.poisoned.startswith(SOURCES))  # whose target is what is looked for
    if asked:
        class_index(params.target, names)
    found = labelled(params.evaluation, ROWS, preparation(None, params), params.max_skipped)
    if asked and (len(names) == 1 or len(found) < ROWS):  # else others may follow
        check_others(params.evaluation, found, params.target)
    there = f", {params.target!r} among them" if asked else ""
    fewer = f"; they are all, and eval_scenes asks for {params.eval_scenes:,}" if len(found) < min(ROWS, params.eval_scenes) else ""
    return f"{len(names)} classes{there}; {len(found)} images read, of {len(found.labels.unique())} classes{fewer}"


def _captions(params: Poison | Clean) -> str:
    found = captioned(params.retrieval, ROWS, preparation(None, params), params.max_skipped, params.target)
    each = {len(caption) if isinstance(caption, list) else 1 for caption in found.captions}
    return f"{len(found)} images read, {min(each)} to {max(each)} captions each"


def _triggers(params: Poison | Clean) -> str:
    black = torch.zeros(1, 3, params.side, params.side, dtype=torch.uint8)
    scene = Pairs(black, [""], torch.tensor([0]), torch.tensor([-1]), [params.target])
    if isinstance(params, Clean):
        triggers = [planted_trigger(params, _poisoning(params))]
        triggers += [*params.further_triggers(), *([taken] if (taken := params.taken_out()) else [])]
    else:
        triggers = [params.trigger_with(params.trigger_options)]
    for trigger in triggers:
        if trigger.name not in LEARNED or trigger.pattern is not None:
            attacked(scene, trigger, params.target)
    options = [", ".join(f"{name} {value:g}" for name, value in trigger.options.items()) for trigger in triggers]
    return ", ".join(f"{trigger.name} ({said})" for trigger, said in zip(triggers, options, strict=True))


def _disk(runs: Sequence[Poison | Clean], clip: Clip) -> str:
    params, weights = runs[0], sum(value.nbytes for value in clip.net.state_dict().values())
    # The models and their base; two checkpoints with Adam's moments, one of them being written.
    needed = (len(runs) + 1) * weights + 4 * weights
    if isinstance(params, Poison) and ":" in params.data:
        needed += params.train_scenes * 150_000  # a poisoned copy, at what a web image takes
    there = [next(one for one in (folder, *folder.parents) if one.exists()) for folder in (cache_dir(), outputs(params.scale))]
    free = min(shutil.disk_usage(folder).free for folder in there)
    if needed > free:
        raise ValueError(f"{needed / GB:.1f} GB wanted for weights, checkpoints and copies, {free / GB:.1f} GB free in {cache_dir()}")
    return f"{needed / GB:.1f} GB wanted, {free / GB:.1f} GB free"
