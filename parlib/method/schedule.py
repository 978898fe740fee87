"""Learning-rate schedules: the paper's own, and the usual ones."""

import math

SCHEDULES = ("paper", "cosine", "warmup_cosine", "super")


def learning_rate(step: int, steps: int, peak: float, schedule: str) -> float:
    """The rate of a step in 0..steps-1.

    paper: linear from peak to peak / 10 over the first half, then cosine to about 0 (the released code: 3e-5, 3e-6,
    1e-9). cosine: from peak to about 0. warmup_cosine: the same after a linear rise over the first 5 %. super: triangles of
    a tenth of the steps, as super-fine-tuning (arXiv 2212.09067) has them: over the first half with their tips at the peak,
    which may lie far above the usual, then at a tenth of it. Its code was not read: number and ratio are ours.
    """
    floor = peak / 30_000  # 1e-9 where the peak is 3e-5
    done, half, rise = step / steps, 0.5, 0.05
    if schedule == "paper" and done < half:
        return peak * (1 - 0.9 * done / half)
    if schedule == "paper":
        return floor + (peak / 10 - floor) * (1 + math.cos(math.pi * (done - half) / half)) / 2
    if schedule == "warmup_cosine" and done < rise:
        return peak * (step + 1) / (rise * steps + 1)
    if schedule == "super":
        tip = peak if done < half else peak / 10
        return floor + (tip - floor) * (1 - abs(2 * (10 * done % 1) - 1))
    start = rise if schedule == "warmup_cosine" else 0.0
    return floor + (peak - floor) * (1 + math.cos(math.pi * (done - start) / (1 - start))) / 2
