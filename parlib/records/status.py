"""Which runs are done, missing or stale, and why."""

from typing import TYPE_CHECKING, Any

from parlib.cache import file_sha256
from parlib.records.identity import differences
from parlib.records.store import located, outputs, read_all, read_file, record_path

if TYPE_CHECKING:
    from parlib.experiments.params import Params


def state(run: "Params", *, cache: bool = True) -> str:
    """done, missing, or why a run must be made again, such as "stale: method/par 1 -> 2". cache: False asks for no file of the cache, which
    may be on the machine that made the record.
    """
    path = record_path(run.scale, run.id)
    if not path.exists():
        return "missing"
    record = read_file(path)
    if changed := stale(record, run):
        return f"stale: {changed}"
    for name, artifact in record["artifacts"].items():
        if artifact["in"] == "cache" and not cache:
            continue
        found = located(artifact)
        if not found.exists():
            return f"its {name} is gone"
        if file_sha256(found) != artifact["sha256"]:
            return f"its {name} is not the file that was written"
    return "done"


def stale(record: dict[str, Any], run: "Params") -> str:
    """What of a record's identity is no longer what is asked, in words; empty where nothing is."""
    try:
        changed = differences(record["identity"], run.identity())
    except (FileNotFoundError, ValueError) as error:  # of what it builds on: it is missing, or another than this run asks for
        return str(error)
    return ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")


def other_params(record: dict[str, Any], run: "Params") -> list[str]:
    """The parameters that a record holds with other values than those asked: it is another run's."""
    made, asked = record["identity"]["params"], run.asked()
    return [f"{name} {made.get(name)} -> {asked.get(name)}" for name in {**made, **asked} if made.get(name) != asked.get(name)]


def fresh(scale: str, check: Any) -> list[dict[str, Any]]:
    """The records of a scale that today's versions would make again; says which it leaves out. check: makes a run of a record's
    notebook and parameters. FileNotFoundError when there is none, but at scale small, where the published ones are.
    """
    found = []
    for record in read_all(outputs(scale)):
        try:
            run = check(record["notebook"], record["params"])
            reason = stale(record, run) or ("" if run.id == record["run"] else f"its id would be {run.id}")
        except ValueError as error:
            reason = str(error)
        if reason:
            print(f"left out: {record['run']} ({reason})")
        else:
            found.append(record)
    if not found and scale != "small":
        raise FileNotFoundError(f"there is no record at scale {scale} yet; python -m parlib.run makes some, from a parameter file")
    return found
