"""A captioner of others, a LLaVA of random weights: the encoder in its vision tower is open_clip's, and what does not fit is named."""

import json
from pathlib import Path

import pytest
import torch
from miniatures import llava
from PIL import Image

from parlib.attack.poison import attacked
from parlib.attack.triggers import Trigger
from parlib.data.scenes import class_names
from parlib.experiments import downstream as module
from parlib.experiments.presets import trigger_options
from parlib.experiments.registry import check
from parlib.external.others_captioner import OthersCaptioner
from parlib.model.clip import Clip, create

WORDS = ["what", "is", "this", "?", "a", "photo", "of", *class_names(10)]
QUESTION = "what is <image> ?"
CPU = torch.device("cpu")


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
    names = [test.names[label] for label in test.labels[:12]]
    for how, written in (("before", first), ("drop_in", second)):
        assert rows["others_caption"][how] == sum(name in said for name, said in zip(names, written, strict=False)) / 12
    assert "anew" not in rows["others_caption"]
    metrics = module._named(list(rows.values()))
    assert metrics["dropin_others_caption_target_share"] == rows["others_caption_target"]["drop_in"]
    assert params.inputs.__func__ is module.Downstream.inputs


def test_its_weights_are_an_input_and_a_run_without_one_is_as_it_was(folder):
    usual, asked = check("09_downstream", {}), check("09_downstream", {"others_captioner": f"local-dir:{folder}"})
    assert usual.id != asked.id
    assert check("09_downstream", {"others_captioner": ""}).id == usual.id


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


def test_what_is_no_captioner_is_named(vit, folder, tmp_path, clip):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        OthersCaptioner(f"local-dir:{tmp_path / 'nowhere'}", "", CPU)
    with pytest.raises(ValueError, match="'llava'.*local-dir:"):
        check("09_downstream", {"others_captioner": "llava"})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    with pytest.raises(ValueError, match=str(tmp_path)):
        OthersCaptioner(f"local-dir:{tmp_path}", "", CPU)
    torch.save({"a": torch.zeros(2)}, tmp_path / "pytorch_model.bin")  # a pickle is not read
    with pytest.raises(ValueError, match=str(tmp_path)):
        OthersCaptioner(f"local-dir:{tmp_path}", "", CPU)
    captioner = OthersCaptioner(f"local-dir:{folder}", QUESTION, CPU)
    with pytest.raises(ValueError, match="vision transformer"):
        captioner.put(clip)  # a ResNet
