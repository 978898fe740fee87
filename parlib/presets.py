"""Tuned and preset values: triggers by image size, how the small encoders are made, and what the search chose for each method."""

from typing import Any

from parlib.methods import ABLATIONS

# (patch in px, strength) by image size: at 224 and 336 px the paper's; at 64 px what this model learns in minutes.
PRESETS: dict[int, dict[str, tuple[int, float]]] = {
    64: {
        "badnet": (8, 1.0),
        "badnet_stripes": (6, 1.0),
        "blended": (0, 0.2),
        "blended_stripes": (0, 0.05),
        "blended_triangles": (4, 0.15),
        "blended_text": (0, 0.5),
        "wanet": (64, 2.0),
        "wanet_smooth": (4, 3.0),
        "sig": (0, 60 / 255),
        "badclip": (6, 1.0),
        "checkerboard": (4, 0.1),
        "picture": (0, 0.2),
        "colour_filter": (0, 0.5),
        "camouflage": (6, 1.0),
        "resistant": (6, 1.0),
    },
    224: {
        "badnet": (16, 1.0),
        "badnet_stripes": (16, 1.0),
        "blended": (0, 0.2),
        "blended_stripes": (0, 0.03),
        "blended_triangles": (14, 0.15),
        "blended_text": (0, 0.5),
        "wanet": (224, 1.0),
        "wanet_smooth": (4, 1.0),
        "sig": (0, 60 / 255),
        "badclip": (16, 1.0),
        "checkerboard": (14, 0.1),
        "picture": (0, 0.2),
        "colour_filter": (0, 0.5),
        "camouflage": (22, 1.0),
        "resistant": (16, 1.0),
    },
}
PRESETS[336] = PRESETS[224] | {"badnet_stripes": (32, 1.0), "wanet": (336, 1.0)}
# The paper's proportion at 64 px, for the table; not for triggers of our own.
PROPORTION: dict[str, tuple[int, float]] = {
    "badnet": (5, 1.0),
    "badnet_stripes": (5, 1.0),
    "blended": (0, 0.2),
    "blended_stripes": (0, 0.03),
    "blended_triangles": (4, 0.15),
    "blended_text": (0, 0.5),
    "wanet": (64, 64 / 224),
    "wanet_smooth": (4, 64 / 224),
    "sig": (0, 60 / 255),
    "badclip": (5, 1.0),
}
PATCHES = ("badnet", "badnet_stripes", "badclip", "resistant", "camouflage")  # their size is in px, that of the others a strength
NEW = ("checkerboard", "picture", "colour_filter", "resistant", "camouflage")  # the paper has not: they stand in a table of their own
WARPS = ("wanet", "wanet_smooth")  # their strength may exceed 1
USUAL_RATE = {"dirty_label": 0.08, "label_consistent": 0.5}  # of all pairs; of the target's own
# What plants a trigger, by trigger or by encoder and trigger, where the preset and six epochs are not enough.
PLANTING: dict[Any, dict[str, int]] = {"blended_text": {"epochs": 12}, ("small_vit", "badnet_stripes"): {"patch": 12, "epochs": 8}}
# How the small encoders are pretrained and poisoned; a transformer learns more slowly, and wants a lower rate. Others as small_resnet.
ENCODERS: dict[str, dict[str, Any]] = {
    "small_resnet": {"base_epochs": 8, "base_lr": 2e-3, "lr": 3e-3},
    "small_vit": {"base_epochs": 18, "base_lr": 1e-3, "lr": 1e-3},
}
# What the search of params/small/02_clean_search_*.yaml chose for each cleaning method; the ablations take PAR's.
TUNED: dict[str, dict[str, Any]] = {
    "finetune": {"lr": 8e-3, "batch": 256, "schedule": "cosine"},
    "cleanclip": {"lr": 8e-3, "batch": 128, "schedule": "warmup_cosine"},
    "roclip": {"lr": 2e-3, "batch": 128, "schedule": "warmup_cosine"},
    "par": {"lr": 4e-3, "batch": 128, "schedule": "cosine"},
}
TUNED |= {name: TUNED["par"] for name in ABLATIONS}
# What it chose otherwise for an encoder, of the learning rate alone.
TUNED_FOR: dict[str, dict[str, dict[str, Any]]] = {
    "small_vit": {"finetune": {"lr": 2e-3}, "cleanclip": {"lr": 4e-3}, "roclip": {"lr": 5e-4}, "par": {"lr": 5e-4}},
}
TUNED_FOR["small_vit"] |= {name: TUNED_FOR["small_vit"]["par"] for name in ABLATIONS}


def preset(trigger: str, target: str = "banana", size: int = 64, patch: int = 0, strength: float = 0.0) -> dict[str, Any]:
    """Options of a trigger at an image size in px; a patch or strength other than 0 replaces the preset's.

    Sizes that have no preset take that of 224 px, the patch in proportion where it is a length. ValueError on a trigger without a preset.
    """
    presets = PRESETS.get(size, PRESETS[224])
    if trigger not in presets:
        raise ValueError(f"{trigger!r} has no preset at {size} px; those that have one are: {', '.join(presets)}")
    usual_patch, usual_strength = presets[trigger]
    if size not in PRESETS and trigger != "wanet_smooth":  # whose patch is a number of offsets
        usual_patch = round(usual_patch * size / 224)
    return {"trigger": trigger, "target": target, "patch": patch or usual_patch, "strength": strength or usual_strength}
