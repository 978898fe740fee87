"""Training through the content-addressed cache: the same weights, data, recipe and versions are trained once."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from parlib.cache import atomic_folder, cache_dir, damaged, digest, file_sha256, lock, read_json, sealed, write_json
from parlib.data.feeds import Feed, Reword
from parlib.method.methods import METHODS, Backdoor, Recipe, rewording
from parlib.method.wordnet import content, folder_of
from parlib.model.clip import CONFIG, WEIGHTS, Clip, load, save
from parlib.records.identity import identity
from parlib.train.compute import PLAIN, Compute
from parlib.train.loop import Watch, check_recipe, fit

_REPORT = "training.json"


@dataclass(frozen=True)
class Reporting:
    """A watch that passes what it sees on to `tell`; in keys it counts as the watch inside."""

    watch: Watch
    tell: Callable[[dict[str, float]], None]

    @property
    def key(self) -> str:
        return self.watch.key

    def look(self, clip: Clip) -> dict[str, float]:
        seen = self.watch.look(clip)
        self.tell(seen)
        return seen


@dataclass(frozen=True)
class Trained:
    """A trained model, where its files are, how it got there, and which rows of others' data were skipped on the way."""

    clip: Clip
    weights: Path
    sha256: str
    history: dict[str, list[float]]
    seconds: float
    skipped: dict[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """Pairs to train on: held (data.Pairs) or streamed (streams.Stream)."""

    def __len__(self) -> int: ...

    def feed(self, clip: Clip, reword: Reword | None = None, seed: int = 0, workers: int = 0) -> Feed: ...


def train(
    clip: Clip,
    pairs: Source,
    recipe: Recipe,
    *,
    reference: Clip | None = None,
    clean: Source | None = None,
    backdoor: Backdoor | None = None,
    watch: Watch | None = None,
    compute: Compute = PLAIN,
    title: str = "",
) -> Trained:
    """`fit` through the cache; `clip` itself is left as it is. An interrupted call goes on where it was. clean: the pairs before the
    attack, for methods that look at them. backdoor: the one to take out, for methods that must know it.
    """
    check_recipe(recipe, len(pairs))
    clip, reference = _on(clip, compute.device), reference and _on(reference, compute.device)
    feed = pairs.feed(clip, rewording(recipe), recipe.seed, compute.workers)
    before = clean.feed(clip, workers=compute.workers) if clean is not None and METHODS[recipe.method].needs_clean else None
    backdoor = backdoor if METHODS[recipe.method].stamps else None
    known = {"reference": reference, "backdoor": backdoor, "watch": watch, "compute": compute}
    key = digest(training_identity(clip, feed, recipe, clean=before, **known))
    folder, unfinished = cache_dir() / "models" / key[:32], cache_dir() / "unfinished" / f"{key[:32]}.pt"
    with lock(unfinished.with_suffix(".lock"), wait=True, doing=title or recipe.method):
        report = kept_report(folder)
        if unfinished.exists() and (report or not sealed(unfinished)):  # of a kill between two files; or it was cut or changed
            if not report:
                damaged(unfinished)
            unfinished.unlink()
        _report_earlier(watch, report, unfinished)
        if report is None:
            options = known | {"checkpoint": unfinished, "title": title}
            if compute.processes > 1:
                from parlib.train.ray import fit_together

                trained, report = fit_together(clip, pairs, recipe, **options)
            else:
                trained = clip.copy()
                try:
                    history, seconds = fit(trained, feed, recipe, clean=before, **options)
                except FloatingPointError:  # it would diverge again
                    unfinished.unlink(missing_ok=True)
                    raise
                report = {"history": history, "seconds": seconds} | feed.skipped()
            report = keep(trained, folder, {"recipe": asdict(recipe)} | report)
            unfinished.unlink(missing_ok=True)
    trained = _on(load(folder), compute.device)
    return Trained(trained, folder / WEIGHTS, report["sha256"], report["history"], report["seconds"], report.get("skipped", {}))


def keep(clip: Clip, folder: Path, report: dict[str, Any]) -> dict[str, Any]:
    """Write a model as a folder of the cache, with its report, to which the sha256 of its files are added; return the report."""
    with atomic_folder(folder) as temporary:
        report = {"sha256": save(clip, temporary), "config": file_sha256(temporary / CONFIG)} | report
        write_json(report, temporary / _REPORT)
    return report


def keep_made(clip: Clip, trained: Trained | None = None) -> Trained:
    """Keep a model under its own digest that was not trained here, or was changed after its training (`trained`)."""
    known = trained or Trained(clip, Path(), "", {}, 0.0)
    folder = cache_dir() / "models" / clip.key[:32]
    with lock(folder.with_suffix(".lock"), wait=True, doing=f"keeping {folder.name}"):
        report = kept_report(folder) or keep(clip, folder, {"history": known.history, "seconds": known.seconds})
    return replace(known, clip=clip, weights=folder / WEIGHTS, sha256=report["sha256"])


def kept_report(folder: Path) -> dict[str, Any] | None:
    """The report of a model that is in the cache as it was kept; None of any other, which is made again. Of earlier versions the sha256 of
    the configuration is not known.
    """
    if not all((folder / name).exists() for name in (_REPORT, WEIGHTS, CONFIG)) or (report := read_json(folder / _REPORT)) is None:
        return None
    for name, told in ((WEIGHTS, report.get("sha256")), (CONFIG, report.get("config"))):
        if told != file_sha256(folder / name) and (told or name == WEIGHTS):
            return damaged(folder / name)
    return report


def _on(clip: Clip, device: str) -> Clip:
    """The model on a device, a copy where it was on another."""
    return clip if clip.device.type == device else clip.copy(device)


def _report_earlier(watch: Watch | None, trained: dict[str, Any] | None, unfinished: Path) -> None:
    """Tell a watch what earlier sittings of a training saw. trained: the report of one that is done."""
    if not isinstance(watch, Reporting) or not (trained or unfinished.exists()):
        return
    history = (trained or torch.load(unfinished, weights_only=True, map_location="cpu"))["history"]
    names = [name for name in history if name.startswith("look_") and name != "look_step"]
    for values in zip(*(history[name] for name in names), strict=True):
        watch.tell({name.removeprefix("look_"): value for name, value in zip(names, values, strict=True)})


def training_identity(
    clip: Clip,
    feed: Feed,
    recipe: Recipe,
    *,
    reference: Clip | None,
    watch: Watch | None,
    compute: Compute = PLAIN,
    clean: Feed | None = None,
    backdoor: Backdoor | None = None,
) -> dict[str, Any]:
    """What names a training in the cache: the recipe and how it is computed, the first weights and the data, the versions of the loop
    and of the method. Of WordNet it is what its files hold, wherever they are.
    """
    usual = {item.name: item.default for item in fields(Recipe)}
    asked = {name: value for name, value in asdict(recipe).items() if value != usual[name]}
    asked |= {"device": clip.device.type, "threads": torch.get_num_threads()}
    # Of the excluded the device is there already, and the others decide no number, or stand in the feed's key.
    asked |= compute.model_dump(exclude={"device", "workers", "ray_address"}, exclude_defaults=True)
    inputs = {"start": clip.key, "pairs": feed.key}
    inputs |= {"reference": reference.key} if reference and METHODS[recipe.method].needs_reference else {}
    inputs |= {"watched": watch.key} if watch else {}
    inputs |= {"clean": clean.key} if clean else {}
    inputs |= {"backdoor": backdoor.key} if backdoor else {}
    if (named := asked.pop("wordnet", "")) and METHODS[recipe.method].reword:
        inputs["wordnet"] = content(folder_of(named))
    return identity(params=asked, inputs=inputs, stages=["loop", f"method/{recipe.method}", *(["metrics"] if watch else [])])
