"""A small captioner: a transformer decoder that reads an image's embedding as its first token, and writes the caption word by word."""

import json
import re
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from parlib.cache import cache_dir, digest, read_tensors, write_tensors
from parlib.data.feeds import generator
from parlib.method.schedule import learning_rate
from parlib.progress import progress
from parlib.records.identity import identity

_WIDTH, _LAYERS, _HEADS = 192, 3, 4  # 1.3 million weights beside those of the words
_BATCH, _RATE = 64, 4e-3
_END = 0  # the token that ends a caption, and fills what follows
_WORD, _CLOSE = re.compile(r"[\w'-]+|[^\w\s]"), re.compile(r" ([.,:;!?])")


class Captioner(nn.Module):
    """words: its vocabulary, of which token i + 1 is the i-th; size: D of the embeddings; length: words of the longest caption."""

    def __init__(self, words: Sequence[str], size: int, length: int):
        super().__init__()
        self.words, self.length = list(words), length
        self.image = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, _WIDTH))
        self.embed = nn.Embedding(len(words) + 1, _WIDTH)
        self.place = nn.Parameter(torch.zeros(length + 1, _WIDTH))
        layer = nn.TransformerEncoderLayer(_WIDTH, _HEADS, 4 * _WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, _LAYERS, nn.LayerNorm(_WIDTH), enable_nested_tensor=False)
        self.out = nn.Linear(_WIDTH, len(words) + 1)

    def forward(self, image: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (B, L + 1, V) of the words that follow an image (B, D) and each of its first words, tokens (B, L)."""
        read = torch.cat([self.image(image)[:, None], self.embed(tokens)], dim=1) + self.place[: tokens.shape[1] + 1]
        mask = nn.Transformer.generate_square_subsequent_mask(read.shape[1], device=read.device)
        return self.out(self.body(read, mask=mask, is_causal=True))

    @torch.no_grad()
    def write(self, images: torch.Tensor, batch: int = 500) -> list[str]:
        """The likeliest next word, one by one: a caption for each embedding, (N, D)."""
        written = []
        for image in images.split(batch):
            tokens = torch.zeros(len(image), 0, dtype=torch.long, device=image.device)
            for _ in range(self.length):
                tokens = torch.cat([tokens, self(image, tokens)[:, -1:].argmax(-1)], dim=1)
                if (tokens == _END).any(1).all():
                    break
            for row in tokens.tolist():
                row = row[: row.index(_END)] if _END in row else row
                written.append(_CLOSE.sub(r"\1", " ".join(self.words[token - 1] for token in row)))
        return written


def fit_captioner(images: torch.Tensor, captions: Sequence[str], *, steps: int, seed: int) -> Captioner:
    """A captioner that learned to write captions, N strings, from the embeddings of a frozen encoder, (N, D): teacher forcing, AdamW, a
    warm-up and a cosine. Trained once for the same embeddings, captions, steps and seed, then read from the cache. ValueError where an
    image has no caption.
    """
    spoken = [_WORD.findall(caption.lower()) for caption in captions]
    if not all(spoken):
        raise ValueError("a captioner learns from captions: some image has none")
    words = sorted({word for one in spoken for word in one})
    index, length = {word: place for place, word in enumerate(words, 1)}, max(len(one) for one in spoken)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = Captioner(words, images.shape[1], length).to(images.device)
    asked = {"steps": steps, "seed": seed, "threads": torch.get_num_threads(), "device": images.device.type}
    key = identity(params=asked, inputs={"images": digest(images), "captions": digest(json.dumps(spoken))}, stages=["captioner"])
    path = cache_dir() / "captioners" / f"{digest(key)[:32]}.safetensors"
    if (kept := read_tensors(path)) is not None:
        found.load_state_dict(kept[0])
        return found.eval()
    tokens = torch.tensor([[index[word] for word in one] + [_END] * (length - len(one)) for one in spoken], device=images.device)
    _fit(found, images, tokens, steps, seed)
    write_tensors(found.state_dict(), path)
    return found.eval()


def _fit(found: Captioner, images: torch.Tensor, tokens: torch.Tensor, steps: int, seed: int) -> None:
    """Train in place. tokens: (N, L), each caption's words and what fills the rest."""
    following = F.pad(tokens, (0, 1), value=_END)  # what comes after the image and after each word
    counted = F.pad(tokens, (1, 0), value=1) != _END  # up to the word that ends it
    optimizer = torch.optim.AdamW(found.parameters(), lr=_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    batch = min(_BATCH, len(images))
    per_epoch = len(images) // batch
    for step in progress(range(steps), "a captioner", total=steps, unit="steps"):
        epoch, place = divmod(step, per_epoch)
        order = torch.randperm(len(images), generator=generator("cpu", seed, "captions", epoch))
        rows = order[place * batch :][:batch].to(images.device)
        logits = found(images[rows], tokens[rows])[counted[rows]]
        loss = F.cross_entropy(logits, following[rows][counted[rows]])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, _RATE, "warmup_cosine")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
