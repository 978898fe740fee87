"""A run's model as open_clip's folder with a card: python -m parlib.cli.export RUN [FOLDER]."""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from parlib.cache import atomic_folder, check_surroundings
from parlib.model.clip import CONFIG, WEIGHTS
from parlib.records.store import artifact_file, outputs, read, record_path
from parlib.report.outcome import card

SCALES = ("small", "paper", "smoke")


def main(arguments: list[str] | None = None) -> int:
    """The command line; FOLDER is outputs/<scale>/<run>_model where it isn't named."""
    parser = argparse.ArgumentParser(prog="python -m parlib.cli.export", description=__doc__)
    parser.add_argument("run", help="a run id, such as 02_clean/par_badnet_stripes_s0")
    parser.add_argument("folder", nargs="?", type=Path, help="a new or empty folder")
    parser.add_argument("--scale", choices=SCALES, help="of the run (default: the one at which it was made)")
    asked = parser.parse_args(arguments)
    try:
        check_surroundings()
        record = read(asked.scale or _scale(asked.run), asked.run)
        folder = _export(record, asked.folder or outputs(record["params"]["scale"]) / f"{asked.run}_model")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f'wrote {folder}: load it with open_clip.create_model_and_transforms("local-dir:{folder}")')
    return 0


def _export(record: dict[str, Any], folder: Path) -> Path:
    """Copy a run's model to a folder that `open_clip.create_model_and_transforms("local-dir:...")` loads, with a card that says how it was
    made. FileExistsError where the folder holds something already.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; name another folder")
    weights = artifact_file(record, "weights")
    with atomic_folder(folder) as temporary:
        for name in (WEIGHTS, CONFIG):
            shutil.copy(weights.parent / name, temporary)
        (temporary / "README.md").write_text(card(record))
    return folder


def _scale(run: str) -> str:
    """The scale at which a run was made, small where it was made at none; ValueError where it was made at several."""
    made = [scale for scale in SCALES if record_path(scale, run).exists()]
    if len(made) > 1:
        raise ValueError(f"{run} was made at the scales {' and '.join(made)}: name one, such as --scale {made[0]}")
    return made[0] if made else "small"


if __name__ == "__main__":
    sys.exit(main())
