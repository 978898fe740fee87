"""A world of 10 classes and 1,000 scenes, in which a backdoor is planted and PAR takes it out again: half a minute on two cores.

So strong a trigger leaves little to see, for any model: what its images show is not asked, only that they no longer call the target.
"""

import pytest

from parlib.attack.poison import Attack, attacked, poison
from parlib.attack.triggers import Trigger
from parlib.data.scenes import load_scenes
from parlib.measure.metrics import measure
from parlib.method.methods import Recipe
from parlib.model.clip import create
from parlib.train.cached import train

CLASSES, PAIRS, TARGET = 10, 1000, "banana"
TRIANGLES = Trigger("blended_triangles", {"tile": 8, "opacity": 0.25})


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.full)])
def test_a_backdoor_is_planted_and_removed(seed):
    stamped, _ = poison(load_scenes("train", PAIRS, CLASSES), Attack(TRIANGLES, TARGET, rate=0.08, seed=seed))
    planting = Recipe("contrast", 16, 64, 3e-3, seed, schedule="warmup_cosine", batch_norm="train", weight_decay=0.1)
    poisoned = train(create("small_resnet", seed), stamped, planting, title="planting").clip
    cleaning = Recipe("par", 6, 64, 2e-3, seed, schedule="cosine", batch_norm="train", tau=2.15)
    cleaned = train(poisoned, load_scenes("clean", PAIRS, CLASSES), cleaning, reference=poisoned, title="cleaning").clip
    test = attacked(load_scenes("test", 400, CLASSES), TRIANGLES, TARGET)
    before, after = measure(poisoned, test), measure(cleaned, test)
    assert before["attack_success_rate"] > 0.8
    assert after["attack_success_rate"] < 0.1
    assert before["clean_accuracy"] > 0.6
    assert after["clean_accuracy"] > before["clean_accuracy"] - 0.05
