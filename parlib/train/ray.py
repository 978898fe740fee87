"""Ray for a while: quiet, without telemetry, stopped afterwards; and one training on several processes, GPUs or machines by Ray Train."""

import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from parlib.cache import ROOT, atomic_file, cache_dir, scratch
from parlib.method.methods import Recipe, rewording
from parlib.model.clip import Clip, load, save
from parlib.train.compute import Compute
from parlib.train.loop import fit

if TYPE_CHECKING:
    from parlib.train.cached import Source

_IN_SOCKETS = 86  # bytes of Ray's sockets below that: .par-ray.<8 letters>/session_<date>_<process>/sockets/<name>


@contextmanager
def ray_running(
    address: str, *, cpus: int, gpus: float, of: str, memory: int = 0, talk: bool = False, checkout: bool = False
) -> Iterator[None]:
    """Our own Ray, stopped at the end, or the running cluster at an address, which is left running. cpus, gpus: what one trial or process
    takes; of: which of them, for errors. memory: bytes of the object store; talk: pass on what workers print; checkout: all machines
    share this one, and the workers write to it. Inside a worker it is that worker's Ray. ValueError when no machine has so much.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        _check_there(cpus, gpus, of)
        yield
        return
    os.environ |= dict.fromkeys(("RAY_USAGE_STATS_ENABLED", "RAY_CHDIR_TO_TRIAL_DIR", "RAY_AIR_NEW_OUTPUT"), "0")
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 leaves a training a thirtieth of a core beside any other process
    # Several nodes need the cache in a folder that they share.
    environment: dict[str, Any] = {"env_vars": {"PAR_CACHE": str(cache_dir())}}
    if checkout:
        environment["env_vars"]["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    else:
        environment["py_modules"] = [str(ROOT / "parlib")]
    options: dict[str, Any] = {"address": address, "runtime_env": environment}
    if not address:
        if re.search(r"\s", sys.prefix):  # it would wait for workers that never come: their command line is cut at the space
            raise ValueError(f"Ray can't start from {sys.prefix!r}: install into a folder whose path has no spaces")
        if cpus > (os.cpu_count() or 1):
            raise ValueError(f"{of} asks for {cpus} CPUs; this machine has {os.cpu_count()}")
        os.environ["RAY_AUTH_MODE"] = "disabled"  # else a token file is written to the home folder
        options = {"address": "local", "include_dashboard": False, "object_store_memory": max(2**28, memory)}
    import ray

    with ExitStack() as stack:
        if not address:  # Ray would leave its logs for ever
            options["_temp_dir"] = str(stack.enter_context(scratch(_short_folder() / "par-ray")))
        try:
            ray.init(log_to_driver=talk, logging_level=logging.ERROR, **options)
        except Exception as error:  # a slow start has no kind of its own
            raise RuntimeError(f"Ray did not start: {' '.join(str(error).split())}") from error
        stack.callback(ray.shutdown)
        _check_there(cpus, gpus, of)
        yield


def _check_there(cpus: int, gpus: float, of: str) -> None:
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for what, asked in (("CPU", cpus), ("GPU", gpus)):
        if asked > (most := max(node.get(what, 0) for node in nodes)):
            raise ValueError(f"{of} asks for {asked:g} {what}s; Ray has {most:g} on one machine")


def _short_folder() -> Path:
    """Where Ray's folder is: /tmp where the usual one is so long that its sockets, of at most 107 bytes, could not be opened."""
    usual = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    return Path("/tmp" if len(os.fsencode(usual)) > 107 - _IN_SOCKETS else usual)


def nbytes(held: Any) -> int:
    """About what pairs or scenes take, bytes; a stream takes nothing."""
    return sum(value.nbytes for value in vars(held).values() if isinstance(value, torch.Tensor)) if hasattr(held, "__dict__") else 0


def fit_together(
    clip: Clip, pairs: "Source", recipe: Recipe, *, compute: Compute, reference: Clip | None, checkpoint: Path, **options: Any
) -> tuple[Clip, dict[str, Any]]:
    """`loop.fit` by compute.processes processes: the trained model, and its report with history and seconds. Losses and S are those of the
    whole batch, gradients are averaged. All resume from one checkpoint, in the cache, which several machines must share.
    RuntimeError where a process failed.
    """
    import ray
    from ray.train import RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    gpus, folder = compute.device == "cuda", checkpoint.with_suffix(".together")
    models = {"clip": clip.copy("cpu"), "reference": reference and reference.copy("cpu")}
    given = models | {"pairs": pairs, "recipe": recipe, "compute": compute, "checkpoint": checkpoint, "folder": folder}
    memory = 4 * sum(value.nbytes for value in clip.net.state_dict().values()) + 2 * nbytes(pairs) + 2 * nbytes(options.get("watch"))
    with ray_running(compute.ray_address, cpus=1, gpus=float(gpus), of="a training process", memory=memory, talk=True):
        if compute.processes > (there := ray.cluster_resources().get("GPU" if gpus else "CPU", 0)):
            raise ValueError(f"{compute.processes} training processes, each on a {'GPU' if gpus else 'CPU'}; Ray has {there:g}")
        shutil.rmtree(folder, ignore_errors=True)
        stored = ray.put(given | options | {"threads": torch.get_num_threads()})
        trainer = TorchTrainer(
            _process,
            train_loop_config={"given": [stored]},
            scaling_config=ScalingConfig(num_workers=compute.processes, use_gpu=gpus),
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
            run_config=RunConfig(name="ray", storage_path=str(folder)),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise RuntimeError(f"a training process failed: {' '.join(str(error).split())[-300:]}") from None
    report, trained = json.loads((folder / "report.json").read_text()), load(folder)
    shutil.rmtree(folder)
    trained.net.to(clip.device)
    return trained, report


def _process(config: dict[str, Any]) -> None:
    """What each process does; the first one writes the result."""
    import ray
    from ray.train import get_context, report
    from ray.train.torch import get_device

    given: dict[str, Any] = ray.get(config["given"][0])  # type: ignore[assignment] (a list of references gives a list)
    clip, reference, pairs, recipe, compute = (given.pop(name) for name in ("clip", "reference", "pairs", "recipe", "compute"))
    folder, threads, device = given.pop("folder"), given.pop("threads"), get_device()
    torch.set_num_threads(max(1, threads // compute.processes))
    clip, reference = clip.copy(device), reference and reference.copy(device)  # what Ray hands out can't be written to
    feed = pairs.feed(clip, rewording(recipe), recipe.seed, compute.workers)
    history, seconds = fit(clip, feed, recipe, reference=reference, compute=compute, **given)
    found = {"history": history, "seconds": seconds} | feed.skipped()
    if get_context().get_world_rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        save(clip, folder)
        with atomic_file(folder / "report.json") as temporary:
            temporary.write_text(json.dumps(found))
    report({})
