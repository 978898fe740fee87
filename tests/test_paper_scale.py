"""The paper's own parameter file, overridden in sizes alone, on the real architectures with random weights, on CPU: `make test-full`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from miniatures import cc3m, encoded

from parlib.model.clip import create

pytestmark = pytest.mark.full
CLASSES = ("axe", "banana", "cat", "dog", "egg")


@pytest.fixture
def stocked(checkout) -> Path:
    """The checkout with miniatures of CC3M and of a labelled folder under data/."""
    (checkout / "data" / "cc3m").mkdir(parents=True)
    cc3m(checkout / "data" / "cc3m", count=40)
    for i, name in enumerate(CLASSES):
        (checkout / "data" / "labelled" / name).mkdir(parents=True)
        for k in range(10):
            (checkout / "data" / "labelled" / name / f"{k}.png").write_bytes(encoded(10 * i + k))
    (checkout / "data" / "labelled" / "egg" / "damaged.png").write_bytes(encoded(1)[:40])
    return checkout


def _run(checkout: Path, *arguments: str, file: str = "main") -> str:
    environment = os.environ | {"PAR_CACHE": str(checkout / "cache")}
    command = [sys.executable, "-m", "parlib.run", f"params/paper/{file}.yaml", *arguments]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("encoder", ["RN50", "ViT-B-32"])
def test_poison_clean_and_evaluate(stocked, encoder):
    weights = stocked / "data" / "base.pt"
    net = {f"module.{name}": value for name, value in create(encoder, seed=0).net.state_dict().items()}
    torch.save({"state_dict": net, "epoch": 3}, weights)
    path = stocked / "params" / "paper" / "main.yaml"
    content = yaml.safe_load(path.read_text())
    small = {"evaluation": "folder:data/labelled", "retrieval": "", "eval_scenes": 50, "templates": 2, "max_skipped": 0.1}
    content["defaults"] |= small | {"encoder": encoder, "trigger": "badnet_stripes", "batch": 8, "epochs": 1, "compute": {"device": "cpu"}}
    poisoning, cleaning, _, evaluation = content["runs"]
    poisoning |= {"base": f"file:{weights}", "train_scenes": 24, "rate": 0.2}
    path.write_text(yaml.safe_dump(content | {"runs": [poisoning]}))
    run = _run(stocked, "--list").partition(":")[0]
    assert run.startswith(f"01_poison/badnet_stripes_{encoder}_s0_")
    assert "'banana'" in _run(stocked, "--dry-run")
    assert not (stocked / "outputs" / "paper" / "01_poison").exists()
    cleaning |= {"poisoned": run, "method": "par", "pairs": 16, "tests": ["blended"], "compute": {"chunk": 4}}
    path.write_text(yaml.safe_dump(content | {"runs": [cleaning, evaluation, poisoning]}))
    _run(stocked)
    poisoned = json.loads((stocked / f"outputs/paper/{run}.json").read_text())
    (cleaned,) = (json.loads(path.read_text()) for path in (stocked / "outputs/paper/02_clean").glob("*.json"))
    assert poisoned["params"]["trigger_options"] == {"size": 16}
    assert cleaned["identity"]["inputs"]["poisoned"] == poisoned["artifacts"]["weights"]["sha256"]
    assert set(cleaned["identity"]["inputs"]) == {"poisoned", "cc3m:data/cc3m", "folder:data/labelled"}
    assert cleaned["experiment"] == "main"
    assert len(cleaned["history"]["s_image"]) == 2
    assert cleaned["metrics"]["s_image"] > 0
    assert cleaned["metrics"]["attack_success_rate_n"] == 40
    skipped = (stocked / cleaned["artifacts"]["skipped"]["path"]).read_text()
    assert json.loads(skipped)["kind"] == "unreadable image"
    assert skipped.count("damaged.png") == 1
    assert (stocked / "outputs/paper/05_evaluate.ipynb").exists()
    if encoder == "RN50":
        _what_comes_after(stocked, content["defaults"], run, cleaned["run"])


def _what_comes_after(stocked: Path, defaults: dict, poisoned: str, cleaned: str) -> None:
    """Notebooks 07 and 09; an inspection takes many minutes on a CPU."""
    path = stocked / "params" / "paper" / "afterwards.yaml"
    content = yaml.safe_load(path.read_text())
    content["defaults"] |= defaults | {"probe_pairs": 20, "poisoned": poisoned}
    content["defaults"] |= {"benign_pairs": 16, "benign_batch": 8, "look_at": [1, 2], "retuned": [5], "retune_steps": 1}
    content["runs"] = [
        one | ({"cleaned": cleaned} if "cleaned" in one else {}) for one in content["runs"] if one["notebook"][:2] in ("07", "09")
    ]
    path.write_text(yaml.safe_dump(content))
    _run(stocked, file="afterwards")
    for notebook, metric in (("07_rebound", "worst_asr_300"), ("09_downstream", "probe_accuracy")):
        records = [json.loads(path.read_text()) for path in (stocked / "outputs/paper" / notebook).glob("*.json")]
        assert len(records) == 2
        assert all(0 <= record["metrics"][metric] <= 1 for record in records)
