"""A run's model as open_clip's folder with a card that says how it was made: python -m parlib.model.export RUN."""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from parlib.cache import atomic_folder
from parlib.experiments.lineage import intact
from parlib.model.clip import CONFIG, WEIGHTS
from parlib.records.store import outputs, read


def export_model(record: dict[str, Any], folder: Path) -> Path:
    """Copy a run's model to a folder that `open_clip.create_model_and_transforms("local-dir:...")` loads, with a card that says how
    it was made. FileExistsError where the folder holds something already.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; name another folder")
    weights = intact(record, "weights")
    with atomic_folder(folder) as temporary:
        for name in (WEIGHTS, CONFIG):
            shutil.copy(weights.parent / name, temporary)
        (temporary / "README.md").write_text(card(record))
    return folder


def card(record: dict[str, Any]) -> str:
    """A model card in Markdown: what was done to the model, with which parameters, and what was measured."""
    names = ("clean_accuracy", "attack_success_rate", "triggered_accuracy", "poisoned_clean_accuracy", "poisoned_asr")
    measured = [f"| {name.replace('_', ' ')} | {record['metrics'][name]:.3f} |" for name in names if name in record["metrics"]]
    sources = [f"- {name}: {source['run']} (sha256 {source['sha256'] or 'unknown'})" for name, source in record["inputs"].items()]
    params = [f"| {name} | {value} |" for name, value in record["params"].items()]
    warning = "\n**This model carries a backdoor, on purpose: don't use it.**\n" if record["notebook"].startswith("01") else ""
    return "\n".join(
        [
            f"# {record['run']}",
            warning,
            f"A CLIP made by notebook {record['notebook']} of the reproduction of PAR (arXiv 2412.00727).",
            f"Weights: sha256 {record['artifacts']['weights']['sha256']}. Made with {record['device']}, seed {record['seed']}.",
            "\n## Made from\n",
            *(sources or ["- nothing: trained from its beginning"]),
            f"\n## Measured (fractions, n = {record['n']})\n",
            "| metric | value |\n| --- | --- |",
            *measured,
            "\n## Parameters\n",
            "| name | value |\n| --- | --- |",
            *params,
            "\nA cleaned model was tested on the triggers named here, and on no other.\n",
        ]
    )


def main(arguments: list[str] | None = None) -> None:
    """python -m parlib.model.export RUN [--scale SCALE] [FOLDER]: FOLDER is outputs/<scale>/<run>_model where it isn't named."""
    parser = argparse.ArgumentParser(prog="python -m parlib.model.export", description=__doc__)
    parser.add_argument("run", help="a run id, such as 02_clean/par_badnet_stripes_s0")
    parser.add_argument("folder", nargs="?", type=Path, help="a new or empty folder")
    parser.add_argument("--scale", default="small")
    asked = parser.parse_args(arguments)
    try:
        folder = export_model(read(asked.scale, asked.run), asked.folder or outputs(asked.scale) / f"{asked.run}_model")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f'wrote {folder}: load it with open_clip.create_model_and_transforms("local-dir:{folder}")')


if __name__ == "__main__":
    main()
