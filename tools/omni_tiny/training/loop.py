"""One training loop for all parts: AdamW, one-cycle learning rate, an exponential mean of the weights, a progress bar."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from tools.omni_tiny.training.parts import Trained


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Duration and speed of one training."""

    name: str
    steps: int
    learning_rate: float
    seed: int
    bar: int = 0
    """Line of the progress bar: two parts are trained at the same time."""
    mean_decay: float = 0.0
    """Decay of the exponential mean of the weights that the result has; 0 keeps the last weights."""


def fix_seeds(seed: int) -> np.random.Generator:
    """Seed torch and give the generator that draws this part's data."""
    torch.manual_seed(seed)
    return np.random.default_rng(seed)


def train(model: torch.nn.Module, loss_of_batch: Callable[[int], torch.Tensor], plan: Plan) -> Trained:
    """Minimise `loss_of_batch(step)` over the model's parameters, in place; leaves the model in eval mode."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, plan.learning_rate, total_steps=plan.steps, pct_start=0.08
    )
    mean = copy.deepcopy([parameter.detach() for parameter in parameters]) if plan.mean_decay else []
    model.train()
    started, smooth = time.monotonic(), 0.0
    progress = tqdm(range(plan.steps), desc=plan.name, position=plan.bar, mininterval=1.0)
    for step in progress:
        loss = loss_of_batch(step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if mean:
            torch._foreach_lerp_(mean, parameters, 1.0 - min(plan.mean_decay, (step + 1) / (step + 10)))
        smooth = float(loss) if step == 0 else 0.98 * smooth + 0.02 * float(loss)
        progress.set_postfix_str(f"loss {smooth:.5f}", refresh=False)
    with torch.no_grad():
        for parameter, value in zip(parameters, mean, strict=False):
            parameter.copy_(value)
    model.eval()
    return Trained(seconds=time.monotonic() - started, loss=smooth, steps=plan.steps)
