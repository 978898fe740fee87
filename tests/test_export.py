"""What leaves the house: a model that open_clip alone loads, with a card."""

import subprocess
import sys

import pytest
import small_records
import torch

from parlib.cache import cache_dir
from parlib.cli.export import main
from parlib.model.clip import save


def test_a_model_is_loaded_by_open_clip_alone_and_says_how_it_was_made(own_outputs, clip, tmp_path, capsys):
    small_records.record()
    made = cache_dir() / "models" / "exported"
    made.mkdir(parents=True, exist_ok=True)
    save(clip, made)
    record = small_records.record("02_clean", {"tau": 1.0}, files={"weights": made / "open_clip_model.safetensors"})
    folder = tmp_path / "model"
    assert main([record["run"], str(folder)]) == 0
    assert f"local-dir:{folder}" in capsys.readouterr().out
    card = (folder / "README.md").read_text()
    source = record["identity"]["inputs"]["poisoned"]
    for line in (
        "# 02_clean/par_badnet_stripes_s0_tau1",
        "| ASR | 0.100 |",
        "- the model before: ",
        "| tau | 1.0 |",
        source,
        "## Under each trigger",
        "## Load it",
    ):
        assert line in card
    assert str(tmp_path) not in card
    code = (
        "import sys, torch, open_clip; net, _, pre = open_clip.create_model_and_transforms('local-dir:' + sys.argv[1]);"
        "net.eval(); torch.save(net.encode_image(torch.ones(1, 3, 64, 64)), sys.argv[2]); assert 'parlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(folder), str(tmp_path / "seen.pt")], check=True, cwd=tmp_path)
    with torch.no_grad():
        assert torch.allclose(torch.load(tmp_path / "seen.pt"), clip.net.encode_image(torch.ones(1, 3, 64, 64)), atol=1e-5)
    assert main([record["run"], str(folder)]) == 1
    assert "not empty" in capsys.readouterr().err
    (made / "open_clip_model.safetensors").write_bytes(b"damaged")
    assert main([record["run"], str(tmp_path / "again")]) == 1
    assert f"--only {record['run']}" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("run", ["02_clean/none", "05_evaluate"])
def test_a_run_that_was_not_made_is_named(own_outputs, capsys, run):
    assert main([run]) == 1
    assert f"--only {run}" in capsys.readouterr().err
