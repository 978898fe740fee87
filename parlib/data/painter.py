"""A small generative model: a conditional variational autoencoder that paints a class's name at 32 px, enlarged to 64."""

import torch
import torch.nn.functional as F
from torch import nn

from parlib.data.feeds import generator
from parlib.data.pairs import Pairs
from parlib.progress import progress

_LATENT = 48
_EPOCHS, _BATCH, _LR = 12, 128, 2e-3


class Painter(nn.Module):
    """encode: a picture (B, 3, 32, 32) of a class to the mean and log-variance of its latent; decode: the way back."""

    def __init__(self, classes: int):
        super().__init__()
        self.names = nn.Embedding(classes, _LATENT)
        down = [(3, 32), (32, 64), (64, 128)]
        self.encoder = nn.Sequential(*[layer for i, o in down for layer in (nn.Conv2d(i, o, 4, 2, 1), nn.GroupNorm(8, o), nn.SiLU())])
        self.moments = nn.Linear(128 * 16 + _LATENT, 2 * _LATENT)
        self.first = nn.Linear(2 * _LATENT, 128 * 16)
        up = [(128, 64), (64, 32)]
        layers = [layer for i, o in up for layer in (nn.ConvTranspose2d(i, o, 4, 2, 1), nn.GroupNorm(8, o), nn.SiLU())]
        self.decoder = nn.Sequential(*layers, nn.ConvTranspose2d(32, 3, 4, 2, 1), nn.Sigmoid())

    def encode(self, pixels: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen = self.encoder(pixels).flatten(1)
        return self.moments(torch.cat([seen, self.names(labels)], dim=1)).chunk(2, dim=1)

    def decode(self, latent: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.first(torch.cat([latent, self.names(labels)], dim=1)).view(-1, 128, 4, 4))


def painter(pairs: Pairs, seed: int = 0, epochs: int = _EPOCHS) -> Painter:
    """Train a painter on pairs: AdamW, the evidence lower bound. Deterministic from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Painter(len(pairs.names))
    small = torch.cat([F.avg_pool2d(part.float(), 2).round().to(torch.uint8) for part in pairs.pixels.split(1000)])
    batch = min(_BATCH, len(pairs))
    steps = len(pairs) // batch * epochs
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LR, total_steps=steps)
    random = generator("cpu", seed, "painter")
    for _ in progress(range(steps), "learning to paint", unit="steps"):
        rows = torch.randint(len(pairs), (batch,), generator=random)
        real, labels = small[rows].float() / 255, pairs.labels[rows]
        mean, spread = model.encode(real, labels)
        latent = mean + (spread / 2).exp() * torch.randn(mean.shape, generator=random)
        lost = (model.decode(latent, labels) - real).square().sum((1, 2, 3)).mean() / (2 * 0.05**2)
        divergence = 0.5 * (mean.square() + spread.exp() - 1 - spread).sum(1).mean()
        optimizer.zero_grad()
        (lost + divergence).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def paint(model: Painter, labels: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """(N, 3, 64, 64) uint8 pictures of the classes (N,)."""
    painted = []
    for part in labels.split(500):
        small = model.decode(torch.randn(len(part), _LATENT, generator=random), part)
        large = F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)
        painted.append((large * 255).round().to(torch.uint8))
    return torch.cat(painted)
