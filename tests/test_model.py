"""Models in and out: open_clip's own folder, strictly; hostile or broken files end in one clear error."""

import os
import shutil

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from parlib.model.clip import CONFIG, WEIGHTS, Clip, create, encoders, load, save


@pytest.fixture
def folder(clip, tmp_path):
    save(clip, tmp_path)
    return tmp_path


def test_round_trip(clip, folder):
    again = load(folder)
    assert again.config == clip.config
    assert all(torch.equal(value, again.net.state_dict()[name]) for name, value in clip.net.state_dict().items())
    assert torch.equal(again.tokenizer(["a cat"]), clip.tokenizer(["a cat"]))
    assert again.tokenizer(["a cat"]).shape == (1, 32)


def test_open_clip_alone_loads_it(clip, folder, scenes):
    net, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    net.eval()
    pixels = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    with torch.no_grad():
        assert torch.allclose(net.encode_image((pixels - mean) / std, normalize=True), clip.image(pixels), atol=1e-6)


def test_seed_decides_the_weights_and_leaves_the_global_state():
    state = torch.random.get_rng_state()
    one, two, other = create("small_resnet", 1), create("small_resnet", 1), create("small_resnet", 2)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(one.net.visual.conv1.weight, two.net.visual.conv1.weight)
    assert not torch.equal(one.net.visual.conv1.weight, other.net.visual.conv1.weight)


def test_names():
    assert encoders()[:3] == ["lite0_minilm", "small_resnet", "small_vit"]
    assert "ViT-B-32" in encoders()
    with pytest.raises(ValueError, match="'RN51'.*small_resnet"):
        create("RN51")


def test_truncated_weights(folder):
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="safetensors"):
        load(folder)


class _Hostile:
    def __reduce__(self):
        return os.mkdir, ("hacked",)


def test_a_pickle_is_refused_and_not_run(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(_Hostile(), folder / WEIGHTS)
    with pytest.raises(ValueError, match="safetensors"):
        load(folder)
    os.rename(folder / WEIGHTS, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=WEIGHTS):
        load(folder)
    assert not (tmp_path / "hacked").exists()


def test_strict_keys(clip, folder):
    shutil.copy(folder / WEIGHTS, folder / "keep")
    clip.net.register_buffer("extra", torch.zeros(1))
    save(clip, folder)
    with pytest.raises(ValueError, match="extra"):
        load(folder)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=CONFIG):
        load(tmp_path / "nowhere")


def test_a_key_tells_weights_and_normalisation_apart(clip: Clip):
    other = clip.copy()
    assert other.key == clip.key
    other.net.visual.image_mean = (0.0, 0.0, 0.0)
    assert other.key != clip.key
    other = clip.copy()
    with torch.no_grad():
        other.net.logit_scale += 1e-3
    assert other.key != clip.key


def test_a_stretched_positional_embedding_is_refused(tmp_path):
    clip = create("small_vit", seed=0)
    save(clip, tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    weights["visual.positional_embedding"] = weights["visual.positional_embedding"][:17].clone()
    save_file(weights, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match="visual.positional_embedding"):
        load(tmp_path)
