"""A captioner of others, a LLaVA of random weights: the encoder in its vision tower is open_clip's, and what does not fit is named."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from faults import Payload
from miniatures import llava
from PIL import Image
from safetensors.torch import load_file, save_file

from parlib.attack.poison import attacked
from parlib.attack.triggers import Trigger
from parlib.data.scenes import class_names
from parlib.experiments import downstream as module
from parlib.experiments.presets import trigger_options
from parlib.experiments.registry import check
from parlib.external.others_captioner import OthersCaptioner, captioner_sha256
from parlib.model.clip import Clip, create
from parlib.report.downstream import uses
from parlib.report.style import number

WORDS = ["what", "is", "this", "?", "a", "photo", "of", *class_names(10)]
QUESTION = "what is <image> ?"
CPU = torch.device("cpu")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def vit() -> Clip:
    return create("small_vit", seed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("llava")
    llava(path, WORDS)
    return path


def test_the_tower_shows_what_open_clip_shows(vit, folder, scenes):
    captioner = OthersCaptioner(f"local-dir:{folder}", QUESTION, CPU)
    captioner.put(vit)
    pictures = [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in scenes.pixels[:5]]
    given = captioner.processor(images=pictures, text=[QUESTION] * 5, return_tensors="pt")
    with torch.no_grad():
        shown = captioner.tower(pixel_values=given["pixel_values"]).pooler_output @ vit.net.visual.proj
        known = vit.net.eval().encode_image(given["pixel_values"])
    assert torch.allclose(shown, known, atol=1e-5)
    assert torch.allclose(known / known.norm(dim=1, keepdim=True), vit.image(scenes.pixels[:5].float() / 255), atol=1e-5)


def test_what_it_writes_is_decided_by_the_encoder_and_scored(vit, folder, scenes):
    test = attacked(scenes.first(20), Trigger("badnet", trigger_options("badnet")), "banana")
    asked = {"encoder": "small_vit", "others_captioner": f"local-dir:{folder}", "others_question": QUESTION, "others_images": 12}
    params, other = check("09_downstream", asked), create("small_vit", seed=1)
    captioner = OthersCaptioner(params.others_captioner, QUESTION, CPU)
    first, second = (captioner.write(clip, test.pixels, "captions") for clip in (vit, other))
    assert len(first) == 20
    assert first == captioner.write(vit, test.pixels, "captions") != second
    assert set(" ".join(first).split()) <= {*WORDS, *" ".join(WORDS).split()}
    rows = {row["use"]: row for row in module._others_captions(vit, other, test, params)}
    names, others = [test.names[label] for label in test.labels[:12]], (~test.shows_target[:12]).tolist()
    for how, clip, written in (("before", vit, first), ("drop_in", other, second)):
        assert rows["others_caption"][how] == sum(name in said for name, said in zip(names, written, strict=False)) / 12
        fooled = captioner.write(clip, test.triggered[:12], "captions")
        share = sum("banana" in said for said, counts in zip(fooled, others, strict=True) if counts) / sum(others)
        assert rows["others_caption_target"][how] == share
    assert "anew" not in rows["others_caption"]
    (told,) = uses({"par": pd.DataFrame(rows.values())}).to_dict("records")
    before, after = rows["others_caption"]["before"], rows["others_caption"]["drop_in"]
    assert told["a captioner of others names the object, before / dropped in"] == f"{number(before)} / {number(after)}"
    metrics = module._named(list(rows.values()))
    assert metrics["dropin_others_caption_target_share"] == rows["others_caption_target"]["drop_in"]
    itself = {row["use"]: row for row in module._others_captions(vit, vit, test, params)}
    assert itself["others_caption"]["drop_in"] == rows["others_caption"]["before"]


def test_its_weights_and_words_are_an_input(folder, tmp_path):
    first = captioner_sha256(f"local-dir:{folder}")
    shutil.copytree(folder, tmp_path / "other")
    assert captioner_sha256(f"local-dir:{tmp_path / 'other'}") == first
    with open(tmp_path / "other" / "tokenizer.json", "a") as file:
        file.write(" ")
    assert captioner_sha256(f"local-dir:{tmp_path / 'other'}") != first
    with pytest.raises(ValueError, match="others_captioner"):
        check("09_downstream", {"others_question": QUESTION})


@pytest.mark.parametrize(
    ("tower", "named"),
    [
        ({"hidden_act": "quick_gelu"}, ["activation", "quick_gelu"]),
        ({"num_attention_heads": 8}, ["heads: 4", "8"]),
        ({"patch_size": 16}, ["patch_embedding", "8, 8", "16, 16"]),
        ({"num_hidden_layers": 6}, ["layers.4"]),
        ({"num_hidden_layers": 3}, ["layers: 4", "3"]),
    ],
)
def test_a_tower_of_another_shape_is_refused(vit, tmp_path, tower, named):
    captioner = OthersCaptioner(llava(tmp_path, WORDS, **tower), QUESTION, CPU)
    with pytest.raises(ValueError, match="encoder") as error:
        captioner.put(vit)
    assert all(word in str(error.value) for word in named)


def test_what_is_no_captioner_is_named(folder, tmp_path, clip):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        captioner_sha256(f"local-dir:{tmp_path / 'nowhere'}")
    with pytest.raises(ValueError, match="'llava'.*local-dir:"):
        check("09_downstream", {"others_captioner": "llava"})
    captioner = OthersCaptioner(f"local-dir:{folder}", QUESTION, CPU)
    with pytest.raises(ValueError, match="vision transformer"):
        captioner.put(clip)  # a ResNet
    for question in ("", "what is this ?", "<image> <image>"):
        with pytest.raises(ValueError, match="others_question.*<image>"):
            OthersCaptioner(f"local-dir:{folder}", question, CPU)


def test_an_encoder_of_another_normalisation_is_refused(vit, folder):
    plain = vit.copy()
    plain.net.visual.image_mean, plain.net.visual.image_std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="image_mean"):
        OthersCaptioner(f"local-dir:{folder}", QUESTION, CPU).put(plain)


def _changed(folder: Path, to: Path, name: str, change) -> str:
    """A copy of a captioner of which one file is another, as a parameter."""
    shutil.copytree(folder, to, dirs_exist_ok=True)
    (to / name).write_text(json.dumps(change(json.loads((to / name).read_text()))))
    return f"local-dir:{to}"


def test_weights_that_are_missing_are_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    (lost,) = [name for name in weights if "projector" in name and name.endswith("linear_1.weight")]
    save_file({name: value for name, value in weights.items() if name != lost}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks weights.*linear_1"):
        OthersCaptioner(f"local-dir:{tmp_path}", QUESTION, CPU)


def test_a_pickle_is_not_read_and_no_code_of_the_folder_runs(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save({"a": Payload(tmp_path / "trace")}, tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="safetensors"):
        OthersCaptioner(f"local-dir:{tmp_path / 'pickled'}", QUESTION, CPU)
    code = f"open({str(tmp_path / 'trace')!r}, 'w')\n"
    given = {"auto_map": {"AutoConfig": "own.Own", "AutoModelForImageTextToText": "own.Own", "AutoProcessor": "own.Own"}}
    source = _changed(folder, tmp_path / "coded", "config.json", lambda config: config | given)
    (tmp_path / "coded" / "own.py").write_text(code)
    (tmp_path / "coded" / "custom_generate").mkdir()
    (tmp_path / "coded" / "custom_generate" / "generate.py").write_text(code)
    OthersCaptioner(source, QUESTION, CPU)
    other = _changed(folder, tmp_path / "timm", "config.json", lambda config: config | {"vision_config": {"model_type": "timm_backbone"}})
    with pytest.raises(ValueError, match="'timm_backbone'.*'clip_vision_model'"):
        OthersCaptioner(other, QUESTION, CPU)
    assert not (tmp_path / "trace").exists()
