"""The paper's own parameter files, overridden in sizes alone, on the real architectures with random weights, on CPU: `make test-full`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from test_sources import _encoded, cc3m

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
        for k in range(3):
            (checkout / "data" / "labelled" / name / f"{k}.png").write_bytes(_encoded(10 * i + k))
    (checkout / "data" / "labelled" / "egg" / "damaged.png").write_bytes(_encoded(1)[:40])
    return checkout


def _run(checkout: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PAR_CACHE": str(checkout / "cache")}
    command = [sys.executable, "-m", "parlib.cli.run", *arguments]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=1500)


def _override(checkout: Path, name: str, **values) -> None:
    path = checkout / "params" / "paper" / f"{name}.yaml"
    path.write_text("# Sizes for a test.\n" + yaml.safe_dump(yaml.safe_load(path.read_text()) | values))


@pytest.mark.parametrize("encoder", ["RN50", "ViT-B-32"])
def test_poison_clean_and_evaluate(stocked, encoder):
    weights = stocked / "data" / "base.pt"
    net = {f"module.{name}": value for name, value in create(encoder, seed=0).net.state_dict().items()}
    torch.save({"state_dict": net, "epoch": 3}, weights)
    for path in (stocked / "params" / "paper").glob("*.yaml"):
        if path.stem not in ("01_poison", "02_clean"):
            path.unlink()
    sizes = {
        "encoder": encoder,
        "trigger": "badnet_stripes",
        "evaluation": "folder:data/labelled",
        "retrieval": "",
        "eval_scenes": 15,
        "templates": 2,
        "max_skipped": 0.1,
    }
    sizes |= {"batch": 8, "compute": {"device": "cpu"}, "epochs": 1}
    _override(stocked, "01_poison", **sizes, base=f"file:{weights}", train_scenes=24, rate=0.2)
    _override(stocked, "02_clean", **sizes | {"compute": {"chunk": 4}}, pairs=16, tests=["blended"])
    (stocked / "params" / "paper" / "05_evaluate.yaml").write_text("# All.\nscale: paper\n")
    looked = _run(stocked, "params/paper/01_poison.yaml", "--dry-run")
    assert looked.returncode == 0, looked.stdout + looked.stderr
    assert "'banana' among them" in looked.stdout
    assert not (stocked / "outputs" / "paper" / "01_poison").exists()
    made = _run(stocked, "params/paper")
    assert made.returncode == 0, made.stdout + made.stderr
    poisoned = json.loads((stocked / f"outputs/paper/01_poison/badnet_stripes_{encoder}_s0.json").read_text())
    cleaned = json.loads((stocked / f"outputs/paper/02_clean/par_badnet_stripes_{encoder}_s0.json").read_text())
    assert poisoned["params"]["patch"] == 16
    assert cleaned["inputs"]["poisoned"]["sha256"] == poisoned["artifacts"]["weights"]["sha256"]
    assert len(cleaned["history"]["s_image"]) == 2
    assert cleaned["metrics"]["s_image"] > 0
    assert cleaned["metrics"]["attack_success_rate_n"] == 12
    skipped = (stocked / cleaned["artifacts"]["skipped"]["path"]).read_text()
    assert json.loads(skipped)["kind"] == "unreadable image"
    assert skipped.count("damaged.png") == 1
    assert (stocked / "outputs/paper/05_evaluate.json").exists()
