"""How a model takes images: the preparation that open_clip keeps with its weights, short of the numbers' scale."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import open_clip
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms import Compose


@dataclass(frozen=True)
class Preparation:
    """From an image of any shape to a square of `side` px.

    resize: open_clip's resize_mode. shortest: the shorter side is resized, the middle cut out. longest: the longer side is resized, the
    rest filled with `fill`. squash: both are resized, whatever the shape, as the paper's code does. interpolation: bicubic or bilinear.
    """

    side: int
    resize: str = "shortest"
    interpolation: str = "bicubic"
    fill: int = 0

    @classmethod
    def of(cls, net: Any) -> "Preparation":
        """What open_clip keeps with a model."""
        how, side = PreprocessCfg(**open_clip.get_model_preprocess_cfg(net)), net.visual.image_size
        return cls(side[0] if isinstance(side, tuple) else side, how.resize_mode, how.interpolation, how.fill_color)

    def __call__(self, image: Image.Image) -> Image.Image:
        return _steps(self)(image)


@lru_cache(maxsize=8)
def _steps(how: Preparation) -> Any:
    config = PreprocessCfg(size=how.side, interpolation=how.interpolation, resize_mode=how.resize, fill_color=how.fill)
    whole: Any = image_transform_v2(config, is_train=False)
    return Compose(whole.transforms[:-2])  # all but the conversion to a tensor, and the normalisation
