"""How a training is computed, as a parameter of the notebooks: on which device, in which precision, by how many processes."""

from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

# On a GPU the same bits each time, as on a CPU, and float32 means it: torch would round what convolutions read to 11 bits (TF32).
torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False


class Compute(BaseModel):
    """What a training computes stays the same, but for rounding; several processes draw each their own augmentation, and processes
    and workers decide the order of pairs that are streamed.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    device: Literal["cpu", "cuda"] = Field(default="cpu", description="where the model and the embedded scenes are")
    precision: Literal["float32", "bf16", "fp16"] = Field(default="float32", description="of autocast; the weights stay in float32")
    chunk: int = Field(default=0, ge=0, description="images or captions embedded at once (GradCache); 0: the whole batch")
    compiled: bool = Field(default=False, description="torch.compile of both towers")
    checkpointing: bool = Field(default=False, description="activations are computed again in the backward pass instead of being kept")
    workers: int = Field(default=0, ge=0, description="processes that decode images, for each training process")
    processes: int = Field(default=1, ge=1, description="training processes, each with a GPU of its own where device is cuda (Ray Train)")
    ray_address: str = Field(default="", description="a running cluster to join, such as auto; empty: a Ray of our own")

    def decisive(self) -> dict[str, Any]:
        """The options that differ from their defaults and can decide a number."""
        return self.model_dump(exclude={"ray_address"}, exclude_defaults=True)


PLAIN = Compute()


def check_compute(compute: Compute, batch: int, batch_norm: str, *, normed: bool, resnet: bool) -> None:
    """Raise ValueError where a batch can't be computed so. normed: the model has BatchNorm; resnet: it is one of open_clip's own."""
    if batch % compute.processes:
        raise ValueError(f"a batch of {batch} can't be shared out evenly to {compute.processes} processes")
    trained = normed and batch_norm != "frozen"
    if compute.chunk and trained:
        raise ValueError("in chunks each would have BatchNorm statistics of its own; set batch_norm to frozen, or chunk to 0")
    if compute.processes > 1 and trained and compute.device != "cuda":
        raise ValueError("BatchNorm over several processes needs GPUs; set batch_norm to frozen")
    if compute.checkpointing and resnet:
        raise ValueError("open_clip's ResNets have no checkpointing; use chunk, with batch_norm frozen")


def check_device(compute: Compute) -> None:
    """Raise ValueError where a training asks for GPUs that this machine has not."""
    if compute.device != "cuda":
        return
    if not torch.cuda.is_available():
        raise ValueError("compute asks for device: cuda, and torch finds no GPU here; take device: cpu, or a machine with one")
    if compute.processes > torch.cuda.device_count() and not compute.ray_address:
        raise ValueError(f"compute asks for {compute.processes} processes, each with a GPU; there are {torch.cuda.device_count()} here")
