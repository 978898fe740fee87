"""`make verify`: are today's runs the published ones, and does the code still compute what its versions say? Exit 1 on a difference."""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from parlib.cache import ROOT, atomic_file, check_surroundings
from parlib.cli.plan import REPRODUCED, plan
from parlib.records.store import REFERENCE, read, read_file, record_path, same_machine

# On another kind of CPU, or with other threads, sums are rounded otherwise, and a training ends elsewhere. Clean accuracies came out up to
# 0.076 apart (outputs/elsewhere); that no computation changed is what golden outputs say.
TOLERANCE = 0.1
_HELD = ("clean_accuracy", "attack_success_rate", "asr")  # metrics that this tolerance is on; others may be anywhere


def differences(made: dict[str, Any], published: dict[str, Any], tolerance: float) -> Iterator[str]:
    """In what a record differs from the published one. 0: inputs, weights, metrics and history are the same. Beyond 0 clean accuracies and
    ASRs are within it, and as many images were looked at; inputs may be others where they are what an earlier run made.
    """
    given = lambda record: {name: sha for name, sha in record["identity"]["inputs"].items() if tolerance == 0 or ":" in name}  # noqa: E731
    for part in ("params", "stages", "environment"):
        if made["identity"][part] != published["identity"][part]:
            yield f"its {part} are others"
    if given(made) != given(published):
        yield "its inputs are others"
    if tolerance == 0:
        ours, theirs = (record["artifacts"].get("weights", {}).get("sha256") for record in (made, published))
        if ours != theirs:
            yield "its weights are others"
        if made["history"] != published["history"]:
            yield "its history is another"
    for name, value in published["metrics"].items():
        found = made["metrics"].get(name)
        if name == "base_seconds" or (tolerance and not (name.endswith("_n") or any(held in name for held in _HELD))):
            continue
        rates = isinstance(value, float) and isinstance(found, float | int)
        if not abs(value - found) <= tolerance if rates else value != found:  # so that NaN differs
            yield f"{name} is {found}, not {value}"


def reproduced() -> list[str]:
    """The runs of `make reproduce`."""
    return [run.id for run in plan(REPRODUCED) if not run.view]


def usual_tolerance(published: dict[str, Any], made: dict[str, Any]) -> float:
    """0 where both were made on a machine of the same kind with as many threads, else TOLERANCE."""
    return 0.0 if same_machine(made, published) else TOLERANCE


def compared(made: dict[str, Any], published: dict[str, Any], tolerance: float | None) -> tuple[str, bool]:
    """How a record differs from the published one, in words, and whether that is allowed: by `tolerance`, else by the usual one."""
    exact, allowed = list(differences(made, published, 0.0)), usual_tolerance(published, made) if tolerance is None else tolerance
    if not exact:
        return "no difference", True
    if found := exact if allowed == 0 else list(differences(made, published, allowed)):
        return "; ".join(found), False
    ours, theirs = (f"{record['provenance']['device']}, {record['provenance']['threads']} threads" for record in (made, published))
    return f"clean accuracies and ASRs within {allowed:g}, not bit for bit (here on {ours}; published on {theirs})", True


def golden() -> bool:
    """Whether every stage computes what its version is known to compute; True, with a word, where the tests are not installed."""
    test = ROOT / "tests" / "test_golden.py"
    if not test.exists() or importlib.util.find_spec("pytest") is None:
        print("golden outputs: not compared, as the tests are not here")
        return True
    environ = os.environ | {"PAR_PROGRESS": "lines", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "-k", "version", str(test)]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    wrong = [line.strip() for line in done.stdout.splitlines() if "computes something else" in line or "has no golden output" in line]
    said = "every stage computes what its version says" if done.returncode == 0 else "; ".join(wrong[:3]) or done.stdout[-500:]
    print(f"golden outputs: {said}")
    return done.returncode == 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m parlib.cli.verify", description=__doc__)
    parser.add_argument("runs", nargs="*", help="run ids (default: those of make reproduce)")
    parser.add_argument("--tolerance", type=float, help=f"on rates (default: 0 on the same kind of machine and threads, else {TOLERANCE})")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="copy their records there, such as to outputs/elsewhere")
    asked = parser.parse_args(arguments)
    try:
        check_surroundings()
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    good = golden()
    for run in asked.runs or reproduced():
        try:
            made = read("small", run)
            if asked.keep:
                with atomic_file(asked.keep / f"{run}.json") as temporary:
                    shutil.copy(record_path("small", run), temporary)
                if not (REFERENCE / f"{run}.json").exists():
                    print(f"{run}: not published, so with nothing to compare")
                    continue
            published = read_file(REFERENCE / f"{run}.json")
        except (OSError, ValueError) as error:
            print(f"{run}: {error}")
            good = False
            continue
        said, same = compared(made, published, asked.tolerance)
        print(f"{run}: {said}")
        good = good and same
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
