"""What leaves the house: a model that open_clip alone loads, with a card."""

import subprocess
import sys

import pytest
import torch

from parlib import export
from parlib.cache import cache_dir
from parlib.model.export import export_model
from parlib.model.clip import save


def test_a_model_is_loaded_by_open_clip_alone_and_says_how_it_was_made(clip, tmp_path):
    made = cache_dir() / "models" / "exported"
    made.mkdir(parents=True, exist_ok=True)
    digest = save(clip, made)
    artifact = {"in": "cache", "path": "models/exported/open_clip_model.safetensors", "sha256": digest}
    record = {
        "run": "02_clean/par_badnet_stripes_s0", "notebook": "02_clean", "seed": 0, "n": 2000, "device": "cpu",
        "params": {"tau": 2.15, "scale": "small"},
        "inputs": {"poisoned": {"run": "01_poison/badnet_stripes_s0", "sha256": "abc"}}, "artifacts": {"weights": artifact},
        "metrics": {"clean_accuracy": 0.9, "attack_success_rate": 0.01},
    }  # fmt: skip
    folder = export_model(record, tmp_path / "model")
    card = (folder / "README.md").read_text()
    assert "# 02_clean/par_badnet_stripes_s0" in card
    assert "| attack success rate | 0.010 |" in card
    assert "| tau | 2.15 |" in card
    assert "01_poison/badnet_stripes_s0 (sha256 abc)" in card
    code = (
        "import sys, torch, open_clip; net, _, pre = open_clip.create_model_and_transforms('local-dir:' + sys.argv[1]);"
        "net.eval(); torch.save(net.encode_image(torch.ones(1, 3, 64, 64)), sys.argv[2]); assert 'parlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(folder), str(tmp_path / "seen.pt")], check=True, cwd=tmp_path)
    with torch.no_grad():
        assert torch.allclose(torch.load(tmp_path / "seen.pt"), clip.net.encode_image(torch.ones(1, 3, 64, 64)), atol=1e-5)
    with pytest.raises(FileExistsError, match="is not empty; name another folder"):
        export_model(record, folder)


def test_the_command_names_the_folder_and_says_what_is_missing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(export, "read", lambda scale, run: {"scale": scale, "run": run})
    monkeypatch.setattr(export, "export_model", lambda record, folder: folder)
    export.main(["02_clean/one", str(tmp_path / "out")])
    assert f"local-dir:{tmp_path / 'out'}" in capsys.readouterr().out
    monkeypatch.undo()
    with pytest.raises(SystemExit, match=r"error: 02_clean/none has not been run yet; make it with: python -m parlib.cli.run"):
        export.main(["02_clean/none"])
