"""`parlib.run PARAMS --dry-run`: everything that can go wrong in a training is looked at before it begins, in less than a minute."""

import resource
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from parlib.attack.poison import attacked
from parlib.attack.triggers import LEARNED
from parlib.cache import cache_dir
from parlib.cli.plan import Planned
from parlib.data.pairs import Pairs, class_index
from parlib.experiments.clean_params import Clean
from parlib.experiments.lineage import load_pairs, open_checkpoint, preparation
from parlib.experiments.params import Params
from parlib.experiments.poison import Poison
from parlib.experiments.subject import planted_trigger
from parlib.external.batches import Skipped, read
from parlib.external.files import Source
from parlib.external.rows import label_names
from parlib.external.stream import Stream, captioned, labelled
from parlib.method.methods import rewording
from parlib.model.checkpoints import SOURCES, checkpoint_of
from parlib.model.clip import Clip, create
from parlib.records.store import located, outputs
from parlib.train.loop import fit

_ROWS = 100  # of each data set
_GB = 1e9


def dry_run(runs: list[Planned]) -> int:
    """Print what each run would meet; 1 where something will not do."""
    good = True
    for run in runs:
        print(f"{run.id}:", flush=True)
        for what, found, fine in rehearse(run.params):
            print(f"  {'ok' if fine else 'NO'}  {what}: {found}", flush=True)
            good = good and fine
    print("nothing was trained; all of it will do" if good else "nothing was trained; mend what is marked NO")
    return 0 if good else 1


def rehearse(params: Params) -> list[tuple[str, str, bool]]:
    """What a run of 01 or 02 would meet, as (what, what was found, whether it will do); nothing is kept. For a checkpoint that would be
    downloaded a random model of its encoder stands in.
    """
    if not isinstance(params, Poison | Clean):
        return [("run", "only 01_poison and 02_clean are rehearsed", True)]
    held: dict[str, Clip] = {}
    steps: dict[str, Callable[[], str]] = {"checkpoint": lambda: _checkpoint(params, held)}
    steps[f"pairs {params.data}"] = lambda: _pairs(params, held["clip"])
    if params.evaluation:
        steps[f"evaluation {params.evaluation}"] = lambda: _labels(params, held["clip"])
    if params.retrieval:
        steps[f"retrieval {params.retrieval}"] = lambda: _captions(params, held["clip"])
    steps["triggers"] = lambda: _triggers(params)
    steps["disk"] = lambda: _disk(params, held["clip"])
    steps["time and memory"] = lambda: _cost(params, held["clip"])
    found = []
    for what, look in steps.items():
        try:
            found.append((what, look(), True))
        except KeyError:
            found.append((what, "needs the checkpoint", False))
        except Exception as error:  # whatever it is, better now than in an hour
            found.append((what, " ".join(str(error).split()), False))
    return found


def _poisoning(params: Poison | Clean) -> dict[str, Any] | None:
    """The record of the poisoned model that is cleaned, where it is a run's."""
    return params.poisoning() if isinstance(params, Clean) and not params.poisoned.startswith(SOURCES) else None


def _checkpoint(params: Poison | Clean, held: dict[str, Clip]) -> str:
    record = _poisoning(params)
    if isinstance(params, Clean):
        source = f"local-dir:{located(record['artifacts']['weights']).parent}" if record else params.poisoned
    else:
        source = checkpoint_of(params.base, params.encoder) if params.base else ""
    fetched = source.startswith(("open_clip:", "hf-hub:"))
    held["clip"] = clip = create(params.encoder) if fetched or not source else open_checkpoint(source, params)
    clip.net.to(params.compute.device)
    count = sum(parameter.numel() for parameter in clip.net.parameters())
    said = f"{source or 'pretrained here'}, {clip.side} px, {count / 1e6:.1f} million weights"
    said += f", {clip.form}" if clip.form else ""
    return said + (", not downloaded for this" if fetched else f", poisoned by {record['run']}" if record else "")


def _pairs(params: Poison | Clean, clip: Clip) -> str:
    if ":" not in params.data:
        return "drawn here"
    skipped, count = Skipped(1.0), 0
    images = preparation(clip, params)
    for pixels, _ in read(params.data, images=images, batch=10, skipped=skipped):
        count += len(pixels)
        if skipped.seen >= _ROWS:
            break
    if skipped.kinds.total() > params.max_skipped * skipped.seen or not count:
        raise ValueError(f"{params.data}: {skipped}; the first is {skipped.rows[0]['row'] if skipped.rows else 'none'}")
    captions = Stream(params.data, _ROWS, images).first(min(count, _ROWS)).captions
    words = [len(caption.split()) for caption in captions]
    return f"{len(captions)} rows read, captions of {min(words)} to {max(words)} words, such as {captions[0]!r}"


def _labels(params: Poison | Clean, clip: Clip) -> str:
    names = label_names(Source.of(params.evaluation))
    class_index(params.target, names)
    found = labelled(params.evaluation, _ROWS, preparation(clip, params), params.max_skipped)
    labels = sorted(set(found.labels.tolist()))
    if not 0 <= labels[0] <= labels[-1] < len(names):
        raise ValueError(f"labels run from {labels[0]} to {labels[-1]}; there are {len(names)} class names")
    return f"{len(names)} classes, {params.target!r} among them; {len(found)} images read, of {len(labels)} classes"


def _captions(params: Poison | Clean, clip: Clip) -> str:
    found = captioned(params.retrieval, _ROWS, preparation(clip, params), params.max_skipped, params.target)
    each = {len(caption) if isinstance(caption, list) else 1 for caption in found.captions}
    return f"{len(found)} images read, {min(each)} to {max(each)} captions each"


def _triggers(params: Poison | Clean) -> str:
    black = torch.zeros(1, 3, params.side, params.side, dtype=torch.uint8)
    scene = Pairs(black, [""], torch.tensor([0]), torch.tensor([-1]), [params.target])
    if isinstance(params, Clean):
        triggers = [planted_trigger(params, _poisoning(params))]
        triggers += [params.model_copy(update={"trigger": name}).trigger_with({}) for name in params.tests]
    else:
        triggers = [params.trigger_with(params.trigger_options)]
    for trigger in triggers:
        if trigger.name not in LEARNED or trigger.pattern is not None:
            attacked(scene, trigger, params.target)
    options = [", ".join(f"{name} {value:g}" for name, value in trigger.options.items()) for trigger in triggers]
    return ", ".join(f"{trigger.name} ({said})" for trigger, said in zip(triggers, options, strict=True))


def _disk(params: Poison | Clean, clip: Clip) -> str:
    weights = sum(value.nbytes for value in clip.net.state_dict().values())
    needed = 2 * weights + 4 * weights  # the model and its base; two checkpoints with Adam's moments, one of them being written
    if isinstance(params, Poison) and ":" in params.data:
        needed += params.train_scenes * 150_000  # a poisoned copy, at what a web image takes
    there = [next(one for one in (folder, *folder.parents) if one.exists()) for folder in (cache_dir(), outputs(params.scale))]
    free = min(shutil.disk_usage(folder).free for folder in there)
    if needed > free:
        raise ValueError(f"{needed / _GB:.1f} GB wanted for weights, checkpoints and copies, {free / _GB:.1f} GB free in {cache_dir()}")
    return f"{needed / _GB:.1f} GB wanted, {free / _GB:.1f} GB free"


def _cost(params: Poison | Clean, clip: Clip) -> str:
    """Short trainings of two batches on pairs that are held: what a pair costs is their difference."""
    recipe, gpu = params.recipe(), clip.device.type == "cuda"
    seconds, peaks = {}, {}
    few, many = (16, 64) if gpu else (4, 12)
    pairs = load_pairs(params.data, many, params, clip=clip).first(many)
    plain = params.compute.model_copy(update={"processes": 1, "chunk": 0, "compiled": False})
    for batch in (few, few, many):  # the first one warms up
        trained, small = clip.copy(), replace(recipe, batch=batch, epochs=2, looks=0)
        feed = pairs.first(batch).feed(trained, rewording(small))
        began = time.monotonic()
        fit(trained, feed, small, reference=clip, compute=plain, title="trial")
        seconds[batch], peaks[batch] = (time.monotonic() - began) / 2, _memory(clip.device)
    each = max((seconds[many] - seconds[few]) / (many - few), seconds[many] / many / 4)
    count = params.pairs if isinstance(params, Clean) else params.train_scenes
    hours = count * recipe.epochs * each / params.compute.processes / 3600
    share = params.compute.chunk or recipe.batch // params.compute.processes
    memory = peaks[many] + max(0, peaks[many] - peaks[few]) / (many - few) * max(0, share - many)
    said = f"about {hours:.1f} h of training, decoding apart ({count} pairs, {recipe.epochs} epochs, {1000 * each:.0f} ms a pair)"
    has = torch.cuda.mem_get_info()[1] if gpu else 0
    if gpu and memory > has:
        raise ValueError(f"{said}; about {memory / _GB:.0f} GB of GPU memory for {share} pairs at once, it has {has / _GB:.0f}: set chunk")
    return f"{said}, {memory / _GB:.1f} GB of {'GPU memory' if gpu else 'memory'} for {share} pairs at once"


def _memory(device: torch.device) -> int:
    """Peak memory of this process so far, bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
