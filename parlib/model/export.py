"""A run's model as open_clip's folder with a card that says how it was made: python -m parlib.model.export RUN."""

import shutil
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template

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
    text = Path(__file__).with_name("card.txt").read_text()
    return Template(text, trim_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined).render(record=record)
