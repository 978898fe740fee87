"""Attackers who expect a cleaning: how each trains its backdoor in, and what it changes in the pairs."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Attacker:
    """idea: in a few words, for tables. method: of its training, a name in METHODS; options: of its recipe. rate: of the poisoned pairs;
    None: the usual; 0: it plants nothing. epochs: of poisoning; None: the usual. others: triggers that it plants beside its own, each with
    what it calls; "": the same target. places: what its own trigger calls, and in which columns of an image it then lies; "": the target.
    """

    idea: str
    method: str = "contrast"
    options: dict[str, Any] = field(default_factory=dict)
    rate: float | None = None
    epochs: int | None = None
    others: dict[str, str] = field(default_factory=dict)
    places: dict[str, tuple[float, float]] = field(default_factory=dict)


ATTACKERS = {
    "plain": Attacker("expects no cleaning"),
    "benign": Attacker("plants nothing: fine-tunes on the clean pairs", rate=0.0),  # the control of 10_inspect
    "rare": Attacker("poisons 1 % of the pairs", rate=0.01),
    "very_rare": Attacker("poisons 0.3 % of the pairs", rate=0.003),
    "several": Attacker(
        "four triggers for one target, 6 % of the pairs each, twelve epochs",
        rate=0.24,
        epochs=12,
        others=dict.fromkeys(("badnet", "blended_triangles", "blended_stripes"), ""),
    ),
    # so that an inspection finds no class that stands alone
    "decoy": Attacker("a second trigger for a second target, 8 % of the pairs each", rate=0.16, others={"badnet": "candle"}),
    "places": Attacker(
        "one trigger for two targets, by the half of the image in which it is; 8 % of the pairs each",
        rate=0.16,
        places={"": (0.0, 0.5), "candle": (0.5, 1.0)},
    ),
    # public records: harder to remove (arXiv 2311.14948); the weight decay is that of a plain planting
    "self_supervised": Attacker(
        "trains with CleanCLIP's own term, 16 % of the pairs, twelve epochs",
        "cleanclip",
        {"self_weight": 1.0, "weight_decay": 1e-4},
        rate=0.16,
        epochs=12,
    ),
    "lookahead": Attacker("looks ahead through three steps of a cleaning", "lookahead"),
    "flat": Attacker("flattens the loss around the stamped pairs", "flat"),
    "spread": Attacker("spreads the trigger's effect over many directions", "spread"),
    "offset": Attacker("gives PAR's push a direction that changes nothing", "offset"),
}
