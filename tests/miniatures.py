"""Published data sets in miniature, in the schema in which they are published. A picture is of one colour: its red says which."""

import csv
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

from parlib.model.clip import Clip, save


def picture(i: int, side: int = 48) -> Image.Image:
    return Image.fromarray(np.full((side, side + 16, 3), (i, 100, 200), dtype=np.uint8))


def encoded(i: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    picture(i).save(file, kind)
    return file.getvalue()


def tarred(pairs: dict[str, dict[str, bytes]]) -> bytes:
    """A tar of WebDataset's: by the name of each pair its members, by their endings."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, members in pairs.items():
            for end, content in members.items():
                info = tarfile.TarInfo(f"{name}.{end}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def cc3m(folder: Path, count: int = 40, shards: int = 4) -> None:
    """CC3M as pixparse/cc3m-wds holds it: tars of jpg, txt, json."""
    for shard in range(shards):
        pairs = {
            f"{i:09d}": {"jpg": encoded(i, "JPEG"), "txt": f"caption {i}".encode(), "json": json.dumps({"key": i}).encode()}
            for i in range(shard, count, shards)
        }
        (folder / f"cc3m-train-{shard:04d}.tar").write_bytes(tarred(pairs))


def photographs(folder: Path, count: int, shards: int = 4) -> Path:
    """CC3M's schema: JPEGs of 224 px of smooth noise, about 20 kB each."""
    random = np.random.default_rng(0)
    pictures = []
    for _ in range(16):
        small = Image.fromarray(random.integers(0, 255, (28, 28, 3), dtype=np.uint8))
        file = io.BytesIO()
        small.resize((224, 224), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        pictures.append(file.getvalue())
    for shard in range(shards):
        pairs = {f"{i:09d}": {"jpg": pictures[i % 16], "txt": f"caption {i}".encode()} for i in range(shard, count, shards)}
        (folder / f"{shard:05d}.tar").write_bytes(tarred(pairs))
    return folder


def synthclip(folder: Path, count: int = 6) -> None:
    """SynthCLIP: numbered zip archives under data, and one csv of image_path and caption."""
    (folder / "data").mkdir()
    for shard in range(2):
        with zipfile.ZipFile(folder / "data" / f"{shard}.zip", "w") as archive:
            for i in range(shard, count, 2):
                archive.writestr(f"{shard}/{i}.png", encoded(i))
    rows = [(f"{i % 2}/{i}.png", f"caption {i}") for i in range(count)]
    write_csv(folder / "combined_images_and_captions.csv", rows, "image_path")


def write_csv(path: Path, rows: list[tuple[str, str]], image: str = "image") -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([(image, "caption"), *rows])


def write_parquet(path: Path, columns: dict) -> None:
    datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()).to_parquet(path)


def own_checkpoint(clip: Clip, folder: Path, count: int = 40) -> dict[str, str]:
    """A model and pairs as someone brings them, as parameters: `poisoned` and `data`."""
    for name in ("model", "pairs"):
        (folder / name).mkdir()
    save(clip, folder / "model")
    cc3m(folder / "pairs", count=count)
    return {"poisoned": f"local-dir:{folder / 'model'}", "data": f"cc3m:{folder / 'pairs'}"}


def llava(folder: Path, words: list[str], **tower: Any) -> str:
    """A LLaVA of random weights in transformers' folder, which knows some words, for small_vit in its vision tower; as a parameter."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = ["<pad>", "<s>", "</s>", "<unk>", "<image>", *words]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "extra_special_tokens": ["<image>"]}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4, "hidden_act": "gelu"}
    vision = transformers.CLIPVisionConfig(**(sizes | {"image_size": 64, "patch_size": 8} | tower))
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = transformers.LlamaConfig(vocab_size=len(vocabulary), pad_token_id=0, bos_token_id=1, eos_token_id=2, **small)
    side = vision.image_size
    images = transformers.CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlavaForConditionalGeneration(
            transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_id=4)
        )
    model.save_pretrained(folder)
    how = {"patch_size": vision.patch_size, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    transformers.LlavaProcessor(image_processor=images, tokenizer=fast, **how).save_pretrained(folder)
    return f"local-dir:{folder}"
