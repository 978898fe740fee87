"""A run's model as open_clip's folder with a card that says how it was made: python -m parlib.model.export RUN."""

import shutil
from pathlib import Path
from typing import Any

from parlib.cache import atomic_folder
from parlib.model.clip import CONFIG, WEIGHTS
from parlib.records.store import artifact_file


def export_model(record: dict[str, Any], folder: Path) -> Path:
    """Copy a run's model to a folder that `open_clip.create_model_and_transforms("local-dir:...")` loads, with a card that says how
    it was made. FileExistsError where the folder holds something already.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; name another folder")
    weights = artifact_file(record, "weights")
    with atomic_folder(folder) as temporary:
        for name in (WEIGHTS, CONFIG):
            shutil.copy(weights.parent / name, temporary)
        (temporary / "README.md").write_text(card(record))
    return folder


def card(record: dict[str, Any]) -> str:
    """A model card in Markdown: what was done to the model, with which parameters, and what was measured."""
    names = ("clean_accuracy", "attack_success_rate", "triggered_accuracy", "poisoned_clean_accuracy", "poisoned_asr")
    measured = [f"| {name.replace('_', ' ')} | {record['metrics'][name]:.3f} |" for name in names if name in record["metrics"]]
    shas = record["identity"]["inputs"]
    sources = [f"- {name}: {run} (sha256 {shas[name] or 'unknown'})" for name, run in record["made_from"].items()]
    params = [f"| {name} | {value} |" for name, value in record["params"].items()]
    warning = "\n**This model carries a backdoor, on purpose: don't use it.**\n" if record["notebook"].startswith("01") else ""
    return "\n".join(
        [
            f"# {record['run']}",
            warning,
            f"A CLIP made by notebook {record['notebook']} of the reproduction of PAR (arXiv 2412.00727).",
            f"Weights: sha256 {record['artifacts']['weights']['sha256']}.",
            f"Made on {record['provenance']['device']}, seed {record['params']['seed']}.",
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
