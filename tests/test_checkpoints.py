"""Checkpoints of others: every form is recognised and loaded strictly, every other file ends in an error that says what it is."""

import gzip
import json
import os
import pickle
import zipfile
from argparse import Namespace
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from parlib.model import checkpoints
from parlib.model.checkpoints import checkpoint_sha256, read_checkpoint
from parlib.model.clip import CONFIG, WEIGHTS, Clip, create, load, save
from parlib.model.forms import recognise

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
        (lambda weights: {"state_dict": _named("module.", weights)}, '{"state_dict": ...}, "module."'),
        (lambda weights: weights | OPENAI, "OpenAI's code"),
        (lambda weights: _named("_orig_mod.", weights), '"_orig_mod."'),
        (lambda weights: _named("module._orig_mod.", weights) | {"epoch": 3}, '"_orig_mod.", "module."'),
        (lambda weights: {n.replace("visual.", "visual._orig_mod."): v for n, v in weights.items()}, '"_orig_mod."'),
        (lambda weights: {"state_dict": _named("model.clip.", weights)}, '{"state_dict": ...}, "model.clip."'),
        (lambda weights: _named("net.clip_model.", weights), '"net.clip_model."'),
        (lambda weights: _named("network.", weights) | {"loss.weight": torch.zeros(3)}, '"network.", 1 others left out'),
        (lambda weights: {name.replace("visual.", "visual.module."): value for name, value in weights.items()}, '"module."'),
        (lambda weights: {"student": _named("backbone.", weights), "epoch": 3}, '{"student": ...}, "backbone."'),
        (lambda weights: {"model": {"state_dict": weights}, "rng_state": torch.zeros(9)}, '{"model": ...}, {"state_dict": ...}'),
        (lambda weights: {"module": weights, "optimizer": {"state": {0: {"step": torch.tensor(1)}}}}, '{"module": ...}'),
        (lambda weights: {"ema": _named("module.", weights) | {"decay": 0.9}}, '{"ema": ...}, averaged weights, "module."'),
        (lambda weights: {"model_ema": _zeros(weights), "model": weights}, '{"model": ...}, averaged weights "model_ema" left out'),
        (lambda weights: _named("model.", weights) | _named("ema.", _zeros(weights)), 'averaged weights "ema." left out, "model."'),
        (
            lambda weights: _named("model.ema.", _zeros(weights)) | _named("model.net.", weights),
            'averaged weights "ema." left out, "model.net."',
        ),
        (lambda weights: _named("module.", weights) | {"n_averaged": torch.tensor(3)}, '"module."'),
    ],
)
def test_every_form_is_recognised_and_loaded(weights, tmp_path, wrap, form):
    content = wrap(weights)
    assert recognise(content, tmp_path)[1] == form
    torch.save(content, tmp_path / "weights.pt")
    clip = read_checkpoint(f"file:{tmp_path / 'weights.pt'}", encoder="small_resnet")
    assert _equal(clip, weights)
    assert clip.form == form


def _named(prefix: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in weights.items()}


def _zeros(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(value) for name, value in weights.items()}


def test_a_scalar_of_shape_1_and_missing_counters_are_mended_and_said(weights, tmp_path):
    counters = [name for name in weights if name.endswith("num_batches_tracked")]
    content = {name: value for name, value in weights.items() if name not in counters}
    torch.save(content | {"logit_scale": weights["logit_scale"].reshape(1)}, tmp_path / "weights.pt")
    clip = read_checkpoint(f"file:{tmp_path / 'weights.pt'}", encoder="small_resnet")
    assert clip.form == "plain state dict, logit_scale of shape (1,), num_batches_tracked filled with 0"
    assert _equal(clip, weights | {name: torch.tensor(0) for name in counters})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(clip, weights, tmp_path, value):
    weights["visual.layer1.0.conv1.weight"][0, 0, 0, 0] = value
    torch.save(weights, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"weights\.pt.*visual\.layer1\.0\.conv1\.weight has 1 of"):
        read_checkpoint(f"file:{tmp_path / 'weights.pt'}", encoder="small_resnet")
    save(clip, tmp_path)
    save_file(weights, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=r"visual\.layer1\.0\.conv1\.weight"):
        read_checkpoint(f"local-dir:{tmp_path}")


def _zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "no weights")


def _cut(path: Path) -> None:
    torch.save({"weight": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])


FOREIGN = {
    "Git LFS pointer.*`git lfs pull`": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 6\n"),
    "web page": lambda path: path.write_text("\n<!DOCTYPE html><html><body>Virus scan warning</body></html>"),
    "JSON.*not found": lambda path: path.write_text('{"error": "not found"}'),
    "is empty": lambda path: path.write_bytes(b""),
    "gzip": lambda path: path.write_bytes(gzip.compress(b"weights")),
    "zip file.*notes.txt": _zipped,
    "begins with b'Not Found": lambda path: path.write_text("Not Found"),
    "begins with": lambda path: path.write_bytes(b"\xfd7zXZ\0 weights"),
    "cut short": _cut,
}


def test_what_a_pickle_names_is_what_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(3), "args": Namespace(lr=1)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"could run code: refused \(argparse\.Namespace\)$"):
        read_checkpoint(f"file:{tmp_path / 'weights.pt'}", encoder="small_resnet")


@pytest.mark.parametrize("named", FOREIGN)
def test_what_took_the_place_of_a_checkpoint_is_named(clip, tmp_path, named):
    for name in ("weights.pt", "weights.safetensors"):
        FOREIGN[named](tmp_path / name)
        with pytest.raises(ValueError, match=f"{name} .*{named}|{name} {named}"):
            read_checkpoint(f"file:{tmp_path / name}", encoder="small_resnet")
    save(clip, tmp_path)
    FOREIGN[named](tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=f"{WEIGHTS} .*{named}|{WEIGHTS} {named}"):
        read_checkpoint(f"local-dir:{tmp_path}")


def test_a_file_s_bytes_decide_how_it_is_read_not_its_suffix(weights, tmp_path):
    save_file(weights, tmp_path / "weights.bin")
    assert _equal(read_checkpoint(f"file:{tmp_path / 'weights.bin'}", encoder="small_resnet"), weights)
    torch.save(weights, tmp_path / "weights.safetensors")
    assert _equal(read_checkpoint(f"file:{tmp_path / 'weights.safetensors'}", encoder="small_resnet"), weights)


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
    endless = {"step": torch.tensor(1)}
    endless["model"] = endless
    refused(endless, "missing")
    refused({"vision_model.embeddings.weight": torch.zeros(1)}, "Hugging Face.*vision_model.embeddings.weight")
    refused(weights | {"visual.conv1.weight": weights["visual.conv1.weight"].to_sparse()}, "visual.conv1.weight.*sparse")
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


def test_a_hub_s_checkpoint_is_read_as_strictly_as_a_folder(clip, tmp_path, monkeypatch, capsys):
    """Laid out as the hub's client leaves it: offline it answers from the cache."""
    monkeypatch.setenv("PAR_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="hf-hub:nobody/nothing"):
        read_checkpoint("hf-hub:nobody/nothing")
    snapshot = _snapshot(tmp_path, "nobody", "something")
    save(clip, snapshot)
    assert _equal(read_checkpoint("hf-hub:nobody/something"), clip.net.state_dict())
    assert f"hf-hub:nobody/something@{snapshot.name}" in capsys.readouterr().out
    assert _equal(read_checkpoint(f"hf-hub:nobody/something@{snapshot.name}"), clip.net.state_dict())
    assert "may change" not in capsys.readouterr().out
    (snapshot / WEIGHTS).write_bytes(pickle.dumps({}))
    with pytest.raises(ValueError, match="safetensors"):
        read_checkpoint("hf-hub:nobody/something")


def _snapshot(cache: Path, owner: str, name: str) -> Path:
    """The folder of a model's one state in the hub's cache."""
    commit = "0" * 40
    snapshot = cache / "hub" / f"models--{owner}--{name}" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(commit)
    return snapshot


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
        assert torch.allclose(load(tmp_path).image(pixels), expected, atol=1e-6)
        net, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    assert preprocess.transforms[-1].mean == (0.0, 0.0, 0.0) or list(preprocess.transforms[-1].mean) == [0.0, 0.0, 0.0]


# TorchScript


def test_torchscript_is_read_without_its_code(tmp_path, monkeypatch):
    model, path = create("small_vit", seed=3), tmp_path / "archive.pt"
    torch.jit.script(model.net).save(str(path))
    monkeypatch.setattr("torch.jit.load", None)
    clip = read_checkpoint(f"file:{path}", encoder="small_vit")
    assert clip.form == "TorchScript archive"
    assert _equal(clip, model.net.state_dict())


class _OpenAI(torch.nn.Module):
    """As OpenAI's archives are: traced, in half precision, with three entries that are no weights."""

    def __init__(self, net: torch.nn.Module):
        super().__init__()
        for name, part in net.named_children():
            setattr(self, name, part.half())
        for name, value in net.named_parameters(recurse=False):
            setattr(self, name, torch.nn.Parameter(value.half()))
        for name, value in OPENAI.items():
            self.register_buffer(name, value)

    def forward(self, x):
        return x + self.logit_scale


def test_openai_s_archive_is_read_in_half_precision(tmp_path):
    model = create("small_vit", seed=4)
    state, net = model.net.state_dict(), _OpenAI(model.copy().net)
    torch.jit.trace(net, torch.zeros(1)).save(str(tmp_path / "archive.pt"))
    clip = read_checkpoint(f"file:{tmp_path / 'archive.pt'}", encoder="small_vit")
    assert clip.form == "TorchScript archive, OpenAI's code"
    assert _equal(clip, {name: value.half().float() for name, value in state.items()})


@pytest.mark.parametrize("where", ["data.pkl", "constants.pkl"])
def test_a_pickle_that_runs_code_inside_an_archive_does_not_run(tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    torch.jit.script(create("small_vit").net).save(str(tmp_path / "good.pt"))
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad:
        for name in good.namelist():
            bad.writestr(name, pickle.dumps(_Hostile(), 2) if name == f"good/{where}" else good.read(name))
    if where == "data.pkl":
        with pytest.raises(ValueError, match="bad.pt.*could run code.*mkdir"):
            read_checkpoint(f"file:{tmp_path / 'bad.pt'}", encoder="small_vit")
    else:  # it is never read
        read_checkpoint(f"file:{tmp_path / 'bad.pt'}", encoder="small_vit")
    assert not (tmp_path / "hacked").exists()


# Hugging Face transformers


def _transformers_model(folder: Path, act: str = "quick_gelu", ratio: int = 4, **options):
    """A random CLIPModel of small_vit's size, or narrower inside, saved in a folder as transformers does."""
    transformers = pytest.importorskip("transformers")
    text = {"hidden_size": 64, "intermediate_size": 64 * ratio, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": act}
    vision = {"hidden_size": 128, "intermediate_size": 128 * ratio, "num_hidden_layers": 4, "num_attention_heads": 4, "hidden_act": act}
    text |= {"max_position_embeddings": 32}
    vision |= {"image_size": 64, "patch_size": 8}
    torch.manual_seed(1)
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=128)).eval()
    for parameter in model.parameters():  # its biases are 0 and its LayerNorms 1
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder, **options)
    return model


def _same(clip: Clip, model) -> bool:
    pixels, tokens = torch.rand(3, 3, 64, 64), clip.tokenizer(["a banana", "a photo of an axe", "a very long caption " * 20])
    with torch.no_grad():
        normal = (pixels - clip.fill) / torch.tensor(clip.net.visual.image_std).view(3, 1, 1)
        wanted = model(input_ids=tokens, pixel_values=normal)
        images, texts = clip.image(pixels), clip.text(tokens)
    equal = torch.allclose(images, wanted.image_embeds, atol=1e-5) and torch.allclose(texts, wanted.text_embeds, atol=1e-5)
    return equal and torch.equal(clip.net.logit_scale, model.logit_scale) and clip.side == 64


@pytest.mark.parametrize(("act", "ratio"), [("quick_gelu", 4), ("gelu", 3)])
def test_transformers_folder_gives_equal_embeddings(tmp_path, act, ratio):
    model = _transformers_model(tmp_path, act, ratio)
    for source in (f"local-dir:{tmp_path}", f"file:{tmp_path / 'model.safetensors'}"):
        clip = read_checkpoint(source)
        assert _same(clip, model)
        assert clip.form == "CLIPModel of Hugging Face transformers"
        assert clip.config["quick_gelu"] is (act == "quick_gelu")
        with pytest.raises(ValueError, match="is no small_resnet.*name its encoder"):
            read_checkpoint(source, encoder="small_resnet")
    (tmp_path / "saved").mkdir()
    save(clip, tmp_path / "saved")
    assert _same(load(tmp_path / "saved"), model)


def test_transformers_weights_without_their_configuration_take_the_encoder_named(tmp_path):
    model, path = _transformers_model(tmp_path, "gelu"), tmp_path / "pytorch_model.bin"
    (tmp_path / "config.json").write_text('{"model_type": "clip", "architectures": ["CLIPModel"]}')  # it says nothing of the towers
    old = model.state_dict() | {"vision_model.embeddings.position_ids": torch.arange(65)[None]}
    torch.save({"state_dict": _named("model.", old)}, path)
    clip = read_checkpoint(f"file:{path}", encoder="small_vit")
    assert _same(clip, model)
    assert clip.form == '{"state_dict": ...}, "model.", CLIPModel of Hugging Face transformers (GELU as small_vit has it)'
    with pytest.raises(ValueError, match="name their encoder"):
        read_checkpoint(f"file:{path}")
    with pytest.raises(ValueError, match="CLIPModel.* is no small_resnet"):
        read_checkpoint(f"file:{path}", encoder="small_resnet")


def test_transformers_shards_and_pickled_weights(tmp_path):
    model = _transformers_model(tmp_path, max_shard_size="1MB")
    index = tmp_path / "model.safetensors.index.json"
    parts = sorted(tmp_path.glob("*.safetensors"))
    assert len(parts) > 1
    assert _same(read_checkpoint(f"local-dir:{tmp_path}"), model)
    first = checkpoint_sha256(f"local-dir:{tmp_path}")
    assert len(first) == 64
    listed = json.loads(index.read_text())
    index.write_text(json.dumps({"weight_map": dict.fromkeys(listed["weight_map"], "../elsewhere.safetensors")}))
    with pytest.raises(ValueError, match=r"\.\./elsewhere\.safetensors.*refused"):
        read_checkpoint(f"local-dir:{tmp_path}")
    index.write_text(json.dumps(listed))
    parts[0].unlink()
    with pytest.raises(FileNotFoundError, match=parts[0].name):
        read_checkpoint(f"local-dir:{tmp_path}")
    index.unlink()
    with pytest.raises(FileNotFoundError, match="pytorch_model.bin"):
        read_checkpoint(f"local-dir:{tmp_path}")
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert _same(read_checkpoint(f"local-dir:{tmp_path}"), model)
    assert checkpoint_sha256(f"local-dir:{tmp_path}") not in ("", first)


def test_a_folder_is_known_by_its_preparation_too(clip, tmp_path):
    save(clip, tmp_path)
    known, path = checkpoint_sha256(f"local-dir:{tmp_path}"), tmp_path / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["preprocess_cfg"]["resize_mode"] = "squash"
    path.write_text(json.dumps(config))
    assert checkpoint_sha256(f"local-dir:{tmp_path}") not in ("", known)


@pytest.mark.parametrize("size", ["1GB", "1MB"])
def test_transformers_from_the_hub_prefers_safetensors(tmp_path, monkeypatch, size):
    """Laid out as the hub's client leaves it: offline it answers from the cache."""
    monkeypatch.setenv("PAR_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    snapshot = _snapshot(tmp_path, "nobody", "clip")
    model = _transformers_model(snapshot, max_shard_size=size)
    pickled, parts = snapshot / "pytorch_model.bin", list(snapshot.glob("*.safetensors"))
    pickled.write_bytes(pickle.dumps(_Hostile()))
    asked, fetch = [], checkpoints.snapshot_download

    def noted(name: str, **options) -> str:
        asked.extend(options["allow_patterns"])
        return fetch(name, **options)

    monkeypatch.setattr(checkpoints, "snapshot_download", noted)
    assert _same(read_checkpoint("hf-hub:nobody/clip"), model)
    assert (len(parts) > 1) is (size == "1MB")
    assert {part.name for part in parts} <= set(asked)
    assert "pytorch_model.bin" not in asked
    for path in (*parts, *snapshot.glob("*.index.json")):
        path.unlink()
    torch.save(model.state_dict(), pickled)
    assert _same(read_checkpoint("hf-hub:nobody/clip"), model)
    pickled.unlink()
    (snapshot / "config.json").write_text('{"model_type": "siglip"}')
    asked.clear()
    with pytest.raises(ValueError, match="siglip"):
        read_checkpoint("hf-hub:nobody/clip")
    assert not [name for name in asked if name.endswith((".safetensors", ".bin"))]


def test_transformers_preprocessing_is_taken_over(tmp_path):
    _transformers_model(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    processor = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}, "resample": 2, "image_mean": [0.5, 0.4, 0.3]}
    path.write_text(json.dumps(processor | {"image_std": [0.1, 0.2, 0.3], "do_center_crop": True}))
    visual = read_checkpoint(f"local-dir:{tmp_path}").net.visual
    assert (visual.image_mean, visual.image_std) == ([0.5, 0.4, 0.3], [0.1, 0.2, 0.3])
    assert {name: visual.preprocess_cfg[name] for name in ("interpolation", "resize_mode", "size")} == {
        "interpolation": "bilinear",
        "resize_mode": "shortest",
        "size": (64, 64),
    }
    path.unlink()
    newer = {"image_processor": {"size": {"height": 64, "width": 64}, "do_center_crop": False, "do_normalize": False}}
    (tmp_path / "processor_config.json").write_text(json.dumps(newer))
    visual = read_checkpoint(f"local-dir:{tmp_path}").net.visual
    assert (visual.preprocess_cfg["resize_mode"], visual.preprocess_cfg["interpolation"]) == ("squash", "bicubic")
    assert (visual.image_mean, visual.image_std) == ([0.0] * 3, [1.0] * 3)
    for wrong, named in (
        ({"size": {"shortest_edge": 72}, "crop_size": 64}, "72"),
        ({"resample": 1}, "resample"),
        ({"image_std": [1, 1]}, "image_std"),
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=f"preprocessor_config.json.*{named}"):
            read_checkpoint(f"local-dir:{tmp_path}")


def test_other_models_of_transformers_are_refused_by_name(tmp_path):
    def refused(named: str, content: dict, config: dict | None = None):
        torch.save(content, tmp_path / "pytorch_model.bin")
        (tmp_path / "config.json").write_text(json.dumps(config)) if config else (tmp_path / "config.json").unlink(missing_ok=True)
        with pytest.raises(ValueError, match=named):
            read_checkpoint(f"local-dir:{tmp_path}" if config else f"file:{tmp_path / 'pytorch_model.bin'}", encoder="small_vit")

    some = {"vision_model.embeddings.class_embedding": torch.zeros(4)}
    refused("SigLIP", some | {"logit_bias": torch.zeros(1)})
    refused("no CLIPModel: it has text_model.pooler.weight", some | {"text_model.pooler.weight": torch.zeros(1)})
    refused("lacks self_attn.k_proj", some | {"text_model.encoder.layers.0.self_attn.q_proj.bias": torch.zeros(1)})
    refused("'siglip'", some, {"model_type": "siglip"})
    refused("describes no CLIPModel", some, {"model_type": "clip"})
    towers = {"model_type": "clip", "vision_config": {}, "text_config": {}}
    refused("gelu_new", some, towers | {"text_config": {"hidden_act": "gelu_new"}})
    refused("hidden_size = 'wide'", some, towers | {"vision_config": {"hidden_size": "wide"}})
    refused("1000 tokens", some, towers | {"text_config": {"vocab_size": 1000}})
    refused("text_config", some, towers | {"text_config": 3})
    refused("not what its config.json says: .*missing|it must be", some, towers)


@pytest.mark.parametrize("tower", ["hf-hub:someone/tower", "local-dir:/somewhere"])
def test_a_checkpoint_can_name_no_image_tower_from_elsewhere(clip, tmp_path, monkeypatch, tower):
    save(clip, tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    config["model_cfg"]["vision_cfg"] = {"timm_model_name": tower, "image_size": 64}
    (tmp_path / CONFIG).write_text(json.dumps(config))
    monkeypatch.setattr("open_clip.create_model", None)
    with pytest.raises(ValueError, match=f"timm_model_name.*{tower}.*refused"):
        load(tmp_path)


@pytest.mark.parametrize("encoder", ["ViT-B-16-SigLIP", "xlm-roberta-base-ViT-B-32"])
def test_encoders_that_need_a_hub_s_text_tower_are_refused(encoder, monkeypatch):
    monkeypatch.setattr("open_clip.create_model", None)
    with pytest.raises(ValueError, match=rf"{encoder} .*pip install -e '.\[lite0\]'"):
        create(encoder)
    tag = open_clip.list_pretrained_tags_by_model(encoder)[0]
    with pytest.raises(ValueError, match=encoder):
        read_checkpoint(f"open_clip:{encoder}:{tag}")
