"""The numbers that prose states of what comes after a cleaning (07, 09) and of attackers who expect one (08), from the published records.
Templates may call every public function.
"""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from parlib.experiments.rebound import BENIGN
from parlib.experiments.registry import check
from parlib.report import downstream, rebound, regimes, tables
from parlib.report.kept import gpu
from parlib.report.numbers import Figures, ends, published, regime
from parlib.report.style import points


def _examined(notebook: str, seed: int = 0, there: bool = False, **asked: Any) -> dict[str, dict[str, Any]]:
    """The published records of 07 or 09 by label, in the regime of their defaults; there: those of the other kind of machine."""
    return rebound.models(published(there), check(notebook, {"seed": seed} | asked))


def examined(notebook: str, model: str, seed: int = 0) -> Figures | None:
    """What 07 or 09 found of a model, by its label, such as par, or base; None where it was not run."""
    record = _examined(notebook, seed).get(model)
    return Figures(record) if record else None


def ended(model: str, treatment: str, seed: int = 0, **wanted: Any) -> float:
    """The ASR at a model's last look in a treatment of 07, such as "retune", poisons=125; of the line half-way; NaN where there is none."""
    found = rebound.curve(pd.DataFrame(_examined("07_rebound", seed)[model]["history"]), treatment, **wanted)
    if found.empty:
        return float("nan")
    return found["attack_success_rate"].iloc[(found["share"] - 0.5).abs().argmin() if treatment == "line" else -1]


def woken(model: str, form: str) -> str:
    """From the least to the most, over the seeds, of the ASR after retuning a model with 125 triggered pairs: "0.72 to 0.88"."""
    seeds = [seed for seed in range(3) if model in _examined("07_rebound", seed)]
    return ends([ended(model, "retune", seed, poisons=125) for seed in seeds], form)


def benign_looks(**asked: Any) -> pd.DataFrame:
    """The looks of 07 at the models of four methods, of all seeds that were run, in the treatments without a triggered image. asked: as
    `_examined` takes it.
    """
    every = [(model, seed, one) for seed in range(3) for model, one in _examined("07_rebound", seed, **asked).items()]
    looks = [pd.DataFrame(one["history"]).assign(model=model, seed=seed) for model, seed, one in every]
    found = pd.concat(looks or [pd.DataFrame(columns=["model", "seed", "treatment"])], ignore_index=True)
    return found[found["model"].isin(["finetune", "cleanclip", "par", "distil"]) & found["treatment"].isin(BENIGN)]


def aftermath(notebook: str) -> str:
    """What 07 or 09 found of all models, as Markdown."""
    found = {label: pd.DataFrame(record["history"]) for label, record in _examined(notebook).items()}
    return tables.markdown((rebound.holds if notebook == "07_rebound" else downstream.uses)(found))


def attacked_by(method: str, attacker: str = "plain", planted: str = "finetuning", rounds: int = 1, there: bool = False) -> Figures | None:
    """What 08 found of an attacker's model and a method; None where it was not run."""
    like, wanted = check("08_adaptive", {}), {"method": method, "attacker": attacker, "planted": planted, "rounds": rounds}.items()
    found = [one for one in published(there) if rebound.alike(one, like) and wanted <= one["params"].items()]
    return Figures(found[0]) if found else None


def left(method: str, attacker: str = "plain") -> list[float]:
    """The ASR that a method leaves of an attacker's backdoor, of several triggers the worst: one a seed that was run on a GPU."""
    seeds = [gpu(f"the_attackers[{seed}]").get("cleaned", []) for seed in (1, 2)]
    return [one["asr"] for them in seeds for one in them if (one["attacker"], one["method"]) == (attacker, method)]


def attacked_seeds(attacker: str, method: str, form: str) -> str:
    """From the least to the most, over seed 0 and those of a GPU, of the ASR that a method leaves of an attacker's backdoor."""
    first = attacked_by(method, attacker)
    return ends([*([first.asr] if first else []), *left(method, attacker)], form)


def searches_moved(methods: Iterable[str] = regimes.SHOWN) -> float:
    """The most, in points, by which the cost of a removal differs between the searches of three seeds, the first on a CPU and the others on
    a GPU, whichever rates they end at.
    """
    spans = []
    for name, pairs, coverage in (("pairs720", 720, 1.0), ("pairs2400_coverage0.25", 2400, 0.25)):
        others = [found for seed in (1, 2) if (found := gpu(f"the_search[{name}-{seed}]"))]
        for method in methods:
            found = [regime(method, pairs, coverage).cost, *(points(one[method]["cost"]) for one in others if one[method]["removed"])]
            spans.append(max(found) - min(found))
    return max(spans)
