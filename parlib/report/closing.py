"""The closing words of a notebook: what this run found, computed from it; and, where it is the published run, its findings."""

import shlex
from typing import Any

import pandas as pd
import yaml
from IPython.display import Markdown, display

from parlib.experiments.adaptive import Adapted
from parlib.experiments.clean import Cleaned
from parlib.experiments.clean_params import Clean
from parlib.experiments.downstream import BuiltOn
from parlib.experiments.inspection import Inspect, Inspected
from parlib.experiments.poison import Poisoned
from parlib.experiments.rebound import Rebounded
from parlib.experiments.sweep import Sweeping
from parlib.experiments.synthetic import FromSynthetic
from parlib.model.checkpoints import SOURCES
from parlib.report.adaptive import idea
from parlib.report.inspection import leading
from parlib.report.outcome import choices, never_passed
from parlib.report.prose import findings
from parlib.report.style import name


def closing(found: Any) -> Markdown:
    """What a run found, or, of parameters alone (a view), the findings on the published runs, where it shows these."""
    said = _SAID[type(found)](found) if type(found) in _SAID else []
    params = found.result.params if said else found
    lines = [*(f"- {line}" for line in said), *findings(params)]
    return Markdown("\n".join(lines) or "*In the tables and figures below: findings are written of the published runs alone.*")


def show(*things: Any) -> None:
    """Display those tables, whole, and figures that hold something; where none does, say so, as a heading stands above them."""
    held = [one for one in things if one is not None and not getattr(one, "empty", False)]
    with pd.option_context("display.max_rows", None):
        for one in held or [Markdown("*No such runs here.*")]:
            display(one)


def _of_poison(found: Poisoned) -> list[str]:
    base, poisoned = found.models["base"], found.models["poisoned"]
    trigger = name(found.result.params.trigger)
    return [
        f"ASR of {trigger}: {_share(poisoned)} in the poisoned model, {base['attack_success_rate']:.3f} in the clean base.",
        f"Clean accuracy: {poisoned['clean_accuracy']:.3f} in the poisoned model, {base['clean_accuracy']:.3f} in the base.",
    ]


def _of_clean(found: Cleaned) -> list[str]:
    params, (before, after) = found.result.params, found.models.values()
    lost = 100 * (before["clean_accuracy"] - after["clean_accuracy"])
    said = [
        f"{name(params.method)} takes the ASR of {name(params.trigger)} from {before['attack_success_rate']:.3f} to {_share(after)}.",
        f"Clean accuracy is {after['clean_accuracy']:.3f}, before {before['clean_accuracy']:.3f}: a cost of {lost:.1f} points. Under the "
        f"trigger {after['triggered_accuracy']:.3f} of the images get their true name, before {before['triggered_accuracy']:.3f}.",
    ]
    said += never_passed(found.trained.history, params.tau)
    if found.subject.record is None:
        said.append("An ASR near 0 says nothing about triggers that were not tested, nor whether the model was poisoned at all.")
    return said


def _share(metrics: dict[str, Any]) -> str:
    asr, n = metrics["attack_success_rate"], metrics["attack_success_rate_n"]
    return f"{asr:.3f} ({round(asr * n)} of {n:,} images)"


def _of_sweep(found: Sweeping) -> list[str]:
    ended = found.ended
    return [
        f"{len(found.trials)} trials: ASR from {ended['attack_success_rate'].min():.3f} to {ended['attack_success_rate'].max():.3f}, clean "
        f"accuracy from {ended['clean_accuracy'].min():.3f} to {ended['clean_accuracy'].max():.3f}.",
        *choices(found.trials),
    ]


def _of_synthetic(found: FromSynthetic) -> list[str]:
    mean = found.means.loc["mean"]
    cost = 100 * (mean["poisoned_clean_accuracy"] - mean["clean_accuracy"])
    return [
        f"PAR with {found.recommended} pairs alone ends at an ASR of {mean['attack_success_rate']:.4f} and a clean accuracy of "
        f"{mean['clean_accuracy']:.3f}, {cost:.1f} points below the poisoned model's ({len(found.tests)} seeds, test scenes)."
    ]


def _of_rebound(found: Rebounded) -> list[str]:
    metrics, params = found.result.metrics, found.result.params
    said = [
        f"{name(params.method)}: ASR {metrics['attack_success_rate']:.3f} before all treatments; at worst {metrics['worst_asr_300']:.3f} "
        f"within 300 steps without a trigger ({metrics['worst_asr_300_ci_low']:.3f} to {metrics['worst_asr_300_ci_high']:.3f})."
    ]
    if "refreshed_attack_success_rate" in metrics:
        said.append(
            f"BatchNorm's statistics anew: ASR {metrics['refreshed_attack_success_rate']:.3f}, clean accuracy "
            f"{metrics['clean_accuracy']:.3f} before and {metrics['refreshed_clean_accuracy']:.3f} after."
        )
    return said


def _of_adaptive(found: Adapted) -> list[str]:
    metrics, params = found.result.metrics, found.result.params
    said = [
        f"The attacker {idea(params.model_dump())}: ASR {metrics['poisoned_asr']:.3f} before, {_share(metrics)} after "
        f"{name(params.method)}, at a cost of {100 * (metrics['poisoned_clean_accuracy'] - metrics['clean_accuracy']):.1f} points.",
        f"S of the images is {metrics['s_image']:.2f}, of the captions {metrics['s_text']:.2f}; {100 * metrics['rotated']:.0f} % of both "
        "is a joint rotation, which removes nothing.",
    ]
    if not metrics.get("within_caps", True):
        said.append("The attacker's model is outside the caps: it lost more than 3 points of clean accuracy, or its ASR is below 0.90.")
    if "worst_asr_of_triggers" in metrics:
        said.append(f"The worst of its triggers still has an ASR of {metrics['worst_asr_of_triggers']:.3f}.")
    return said


def _of_downstream(found: BuiltOn) -> list[str]:
    metrics, params = found.result.metrics, found.result.params
    before = "the model before" if params.poisoned.startswith(SOURCES) else "the poisoned model"
    said = [
        f"A probe has an accuracy of {metrics['probe_accuracy']:.3f} on {name(params.method)}; one that was fitted on {before} "
        f"{metrics['dropin_probe_accuracy']:.3f}."
    ]
    if "retrieval_at_1" in metrics:
        said.append(
            f"A caption finds its image first in {metrics['dropin_retrieval_at_1']:.3f} of the searches in the index of {before}, in "
            f"{metrics['retrieval_at_1']:.3f} of those in one that is built anew."
        )
    return said


def _taking_out(params: Inspect, target: str) -> str:
    """The parameters of 02 that unlearn what was found in the same model, at the scale small as with few pairs, quoted for a shell."""
    usual = Clean.check({"scale": params.scale})
    own = params.poisoned.startswith(SOURCES)
    same = ["scale", "encoder", "poisoned", "trigger", "attack", "trigger_options", "attacker", "planted", "seed", "normalised", "resize"]
    same += ["evaluation"] if own else ["base_epochs", "evaluation"]
    asked = {name: getattr(params, name) for name in same if getattr(params, name) != getattr(usual, name)}
    asked["target"] = target if own and not params.words else params.target
    chosen = Inspect.check({"scale": "small", "method": "unlearn"}).cleaning()
    settings = [] if own or params.scale != "small" else ["pairs", "steps", "varied", "lr", "batch"]
    few = {name: getattr(chosen, name) for name in settings}
    few |= {"pairs": params.pairs, "coverage": params.coverage} if params.from_pairs else {}
    given = {"method": "unlearn", "inverted": params.id} | few | asked
    return shlex.quote(yaml.safe_dump(given, default_flow_style=True, width=10**6, sort_keys=False).strip())


def verdict(params: Inspect, metrics: dict[str, Any]) -> list[str]:
    """What an inspection says of a model, and how to take out what it found."""
    looks = "looks poisoned" if metrics["detected"] else "shows no target"
    said = [
        f"The model {looks}: {leading(metrics)}. Its trigger turns {metrics['inverted_asr']:.0%} of the images; the "
        f"threshold is {params.threshold:g}."
    ]
    if not metrics["detected"]:
        said.append("That clears no model: it says that no small trigger of these forms stands out.")
    elif params.method == "none":
        said.append(
            f"To take it out, with your own pairs and rate: `papermill notebooks/02_clean.ipynb OUT.ipynb -y "
            f"{_taking_out(params, metrics['candidate'])}`."
        )
    return said


_SAID = {
    Poisoned: _of_poison,
    Cleaned: _of_clean,
    Sweeping: _of_sweep,
    FromSynthetic: _of_synthetic,
    Rebounded: _of_rebound,
    Adapted: _of_adaptive,
    BuiltOn: _of_downstream,
    Inspected: lambda found: verdict(found.result.params, found.result.metrics),
}
