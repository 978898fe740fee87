"""What names a run: its notebook, and the axes that differ from the scale's defaults."""

from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import Field

from parlib.cache import ROOT, digest
from parlib.params import NOTEBOOKS, Attack, Params, Swept, check

_NAMED = ("name", "method", "trigger", "attack", "encoder", "seed")  # these stand in a run id in words, other axes as name and value


# A sweep's own name stands for all of these.
_OF_SWEEPS = ("space", "search", "samples", "asha", "alone", "cpus", "gpus", "ray_address")


def scale_defaults(notebook: str, scale: str, *of: str) -> dict[str, Any]:
    """What a scale takes instead of the defaults: the single values of params/<scale>/<notebook>.yaml, and then those of
    <notebook>_<name>.yaml for each of these names, of a method or an encoder, that has such a file.
    """
    found: dict[str, Any] = {}
    for name in (notebook, *(f"{notebook}_{name}" for name in of)):
        path = ROOT / "params" / scale / f"{name}.yaml"
        values = yaml.safe_load(path.read_text()) if path.exists() else None
        found |= {axis: value for axis, value in (values or {}).items() if not isinstance(value, list)}
    return found


def specific(named: Mapping[str, Any]) -> list[str]:
    """The names of parameters that may have a file of their own in a scale."""
    return [str(named[axis]) for axis in ("method", "encoder") if axis in named]


def run_id(notebook: str, params: Params) -> str:
    """The notebook and the axes that differ from the scale's defaults: 02_clean/par_blended_text_s1_tau3."""
    if not isinstance(params, Attack):
        return notebook
    given = params.model_dump()
    named = {name: given[name] for name in _NAMED if isinstance(given.get(name), str | int)}
    values = scale_defaults(notebook, params.scale, *specific(named)) | named | {"scale": params.scale}
    usual = (
        NOTEBOOKS[notebook](**values) if isinstance(params, Swept) else check(notebook, values)
    ).model_dump()  # their default trials are not run
    words = [named[name] for name in ("name", "method", "trigger") if name in named]
    words += [given["attack"]] if given.get("attack", "dirty_label") != "dirty_label" else []
    words += [str(given["encoder"])] if given.get("encoder", "small_resnet") != "small_resnet" else []
    words.append(f"s{params.seed}")
    renamed = given.get("name") != NOTEBOOKS[notebook].model_fields.get("name", Field(None)).default
    for name, value in given.items():
        if value != usual[name] and name not in ("compute", "tests") and not (renamed and name in _OF_SWEEPS):  # which change no result
            shown = f"{value:g}" if isinstance(value, float) else "-".join(map(str, value)) if isinstance(value, list) else str(value)
            words.append(name + (shown if shown.replace(".", "").replace("-", "").isalnum() else digest(shown)[:8]))
    return f"{notebook}/{'_'.join(words)}"
