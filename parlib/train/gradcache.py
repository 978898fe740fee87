"""Large batches: embeddings gathered over processes, and computed in chunks that fit (GradCache, arXiv 2101.06983). The loss is that of
the whole batch on every process: a method sees gathered embeddings, and its own code stays as it is.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from parlib.data.feeds import rank, world
from parlib.model.clip import Clip

Tower = Callable[[torch.Tensor], torch.Tensor]


class _Gather(torch.autograd.Function):
    """(B, D) of every process, stacked: (world, B, D). The loss is the same on each: a gradient is world times its share's, which
    `average` divides again.
    """

    @staticmethod
    def forward(ctx, values: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(values) for _ in range(world())]
        dist.all_gather(parts, values.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return gradient[rank()] * world()


def gather(values: torch.Tensor, local: int) -> torch.Tensor:
    """Embeddings (k * local, D) of every process as (k * local * world, D): k times the whole batch, ordered as one process would."""
    if world() == 1:
        return values
    parts = _Gather.apply(values)  # (world, k * local, D)
    return parts.unflatten(1, (-1, local)).transpose(0, 1).flatten(0, 2)


def average(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Average gradients over the processes, in place."""
    if world() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for waiting in [dist.all_reduce(gradient, async_op=True) for gradient in gradients]:
        waiting.wait()
    for gradient in gradients:
        gradient /= world()


def check_agreement(value: int, otherwise: str) -> None:
    """Raise RuntimeError, saying `otherwise`, unless all processes hold the same value."""
    if world() == 1:
        return
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    if len(set(values)) > 1:
        raise RuntimeError(otherwise)


@dataclass
class GradCache:
    """A model as a method sees it, when its batch is spread over processes or embedded in chunks.

    local: images or captions of this process in a batch; chunk: how many are embedded at once, 0: all; precision: of autocast.
    With chunks, `backward` embeds each a second time, now with its graph: memory for one chunk, gradients of the whole batch. That
    holds only where no embedding depends on its neighbours: BatchNorm must be frozen.
    """

    clip: Clip
    local: int
    chunk: int = 0
    precision: torch.dtype | None = None
    passes: list[tuple[Tower, torch.Tensor, torch.Tensor]] = field(default_factory=list)

    @property
    def net(self) -> torch.nn.Module:
        return self.clip.net

    def image(self, pixels: torch.Tensor) -> torch.Tensor:
        """Clip.image of the whole batch: (B * world, D) float32, unit-norm."""
        return gather(self._embed(self.clip.image, pixels), self.local)

    def text(self, tokens: torch.Tensor) -> torch.Tensor:
        """Clip.text of the whole batch: (B * world, D) float32, unit-norm."""
        embed = self._run if tokens.is_floating_point() else self._embed  # a frozen tower's embeddings have no graph to make again
        return gather(embed(self.clip.text, tokens), self.local)

    def _embed(self, tower: Tower, inputs: torch.Tensor) -> torch.Tensor:
        if not self.chunk or len(inputs) <= self.chunk:
            return self._run(tower, inputs)
        with torch.no_grad():
            found = torch.cat([self._run(tower, part) for part in inputs.split(self.chunk)])
        if torch.is_grad_enabled():
            self.passes.append((tower, inputs, found.requires_grad_()))
        return found

    def backward(self, loss: torch.Tensor) -> None:
        """loss.backward(), through the chunks as well."""
        loss.backward()
        for tower, inputs, found in self.passes:
            if found.grad is None:  # embedded, but not in the loss, such as captions that are matched with a pool's
                continue
            for part, gradient in zip(inputs.split(self.chunk), found.grad.split(self.chunk), strict=True):
                self._run(tower, part).backward(gradient)
        self.passes.clear()

    def _run(self, tower: Tower, inputs: torch.Tensor) -> torch.Tensor:
        with torch.autocast(inputs.device.type, self.precision, enabled=self.precision is not None):
            found = tower(inputs)
        return found.float()
