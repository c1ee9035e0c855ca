"""A training run (course): seeded, logged, and resumable at any saved step.

The batch of a step depends only on the seed and the step's number, so a run that was interrupted and
resumed sees the same batches in the same order.
"""

# torch's own hints are partly unknown:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger("latentc.scenes.train")

Loss = Callable[[Any, int], tuple[Tensor, Mapping[str, float]]]
"""From the model and the step's number to the loss, and figures for the log."""


@dataclass(frozen=True)
class Course:
    """How one model is trained: matrices and kernels by Muon, the rest by AdamW.

    Rates rise over `warm_up` steps, stay constant, and fall to zero over the last `cool_down` steps.
    """

    name: str
    steps: int
    matrix_rate: float
    other_rate: float
    warm_up: int
    cool_down: int
    ema: float
    """Decay of the averaged weights at each step, after enough steps."""
    save_every: int
    weight_decay: float = 0.0
    """For matrices and kernels, multiplied by their rate. Nothing else keeps weights before a norm from growing, and if
    the residual stream grows, a branch loses its effect."""


class Muon(torch.optim.Optimizer):
    """Steps whose matrices have all singular values near one (Jordan, 2024, kellerjordan.github.io/posts/muon).

    As torch.optim.Muon, but in f32: its bf16 products took a quarter of a step on a CPU without AMX, f32 takes half of
    that. Steps are scaled to the size of AdamW's (Liu et al., 2025, arXiv:2502.16982).
    """

    def __init__(self, matrices: list[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step with Nesterov's momentum."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix)
                kept = state["momentum_buffer"].lerp_(matrix.grad, 1 - group["momentum"])
                direction = orthogonal(matrix.grad.lerp(kept, group["momentum"]))
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(direction, alpha=-0.2 * group["lr"] * max(matrix.shape) ** 0.5)
        return loss


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix with singular values between about 0.7 and 1.2, by five Newton-Schulz steps."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(5):
        square = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(square, square, square, beta=-4.7750, alpha=2.0315), wide, beta=3.4445)
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


class Optimizer:
    """Muon for matrices and kernels, AdamW for embeddings, biases and norms.

    A kernel is a matrix with a row for each output channel. On the autoencoder this reached in 250 steps what AdamW
    alone reached in 1000.
    """

    def __init__(self, model: nn.Module, course: Course) -> None:
        embedded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._kernels = [p for p in parameters if p.ndim > 1 and id(p) not in embedded]
        self._matrices = [nn.Parameter(p.data.view(p.shape[0], -1)) for p in self._kernels]
        others = [p for p in parameters if p.ndim < 2 or id(p) in embedded]
        muon = Muon(self._matrices, lr=course.matrix_rate, weight_decay=course.weight_decay)
        self._course = course
        self._parts: dict[str, torch.optim.Optimizer] = {"muon": muon}
        if others:  # a LoRA has none
            adam = torch.optim.AdamW(others, lr=course.other_rate, betas=(0.9, 0.99), weight_decay=0.0)
            self._parts["adam"] = adam

    def step(self, share: float) -> None:
        """Take one step at this share of the rates, and clear the gradients."""
        rates = {"muon": self._course.matrix_rate, "adam": self._course.other_rate}
        for matrix, kernel in zip(self._matrices, self._kernels, strict=True):
            matrix.grad = None if kernel.grad is None else kernel.grad.reshape(matrix.shape)
        for name, part in self._parts.items():
            for group in part.param_groups:
                group["lr"] = share * rates[name]
            part.step()
            part.zero_grad(set_to_none=True)
        for kernel in self._kernels:
            kernel.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The state to resume from."""
        return {name: part.state_dict() for name, part in self._parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from this state, with the rates and the decay of the current course."""
        for name, part in self._parts.items():
            decays = [group["weight_decay"] for group in part.param_groups]
            part.load_state_dict(state[name])
            for group, decay in zip(part.param_groups, decays, strict=True):
                group["weight_decay"] = decay


def share_at(course: Course, step: int) -> float:
    """The share of its full learning rates at a step."""
    return min(1.0, (step + 1) / course.warm_up, (course.steps - step) / max(1, course.cool_down))


def run_course(
    course: Course, model: nn.Module, loss: Loss, folder: Path, show: Callable[[Any, int], Mapping[str, float]]
) -> nn.Module:
    """Train `model` up to `course.steps`, resuming from the state in `folder`; returns it with averaged weights.

    `show` is called with the averaged model at each save, and its figures are logged; it may write
    sample sheets into the folder. The log is `log.jsonl`: step, seconds of training so far, loss.
    """
    folder.mkdir(parents=True, exist_ok=True)
    averaged = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=_warm_ema(course.ema))
    optimizer = Optimizer(model, course)
    step, seconds = _load(folder, model, averaged, optimizer)
    log.info("%s: from step %d to %d, %.0f s trained so far", course.name, step, course.steps, seconds)
    totals: dict[str, float] = {}
    since, counted = time.perf_counter(), step
    while step < course.steps:
        torch.manual_seed(step)
        value, figures = loss(model, step)
        if not torch.isfinite(value):
            raise FloatingPointError(f"{course.name}: the loss is {value.item()} at step {step}. Lower the rate.")
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(share_at(course, step))
        averaged.update_parameters(model)
        step += 1
        for key, figure in {"loss": value.item(), **figures}.items():
            totals[key] = totals.get(key, 0.0) + figure
        if step % 100 == 0 or step == course.steps:
            now = time.perf_counter()
            seconds += now - since
            line = {key: round(total / (step - counted), 6) for key, total in totals.items()}
            speed = (step - counted) / (now - since)
            _write_log(
                folder, {"step": step, "seconds": round(seconds, 1), "steps_per_second": round(speed, 3), **line}
            )
            totals, since, counted = {}, now, step
        if step % course.save_every == 0 or step == course.steps:
            paused = time.perf_counter()
            _save(folder, model, averaged, optimizer, step, seconds + paused - since)
            _write_log(folder, {"step": step, **show(averaged.module, step)})
            since += time.perf_counter() - paused
    return averaged.module


def _warm_ema(keep: float) -> Callable[[Any, Any, Any], None]:
    """An average with a warm-up: its decay is at most (1 + n) / (10 + n) after n steps."""

    def update(averaged: Any, current: Any, count: Any) -> None:
        n = int(count)
        share = 1.0 - min(keep, (1 + n) / (10 + n))
        for mean, value in zip(averaged, current, strict=True):
            mean.lerp_(value, share)

    return update


def _write_log(folder: Path, line: Mapping[str, float]) -> None:
    with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    log.info("%s %s", folder.name, ", ".join(f"{key} {value:g}" for key, value in line.items()))


def _save(folder: Path, model: nn.Module, averaged: nn.Module, optimizer: Optimizer, step: int, seconds: float) -> None:
    state = {
        "model": model.state_dict(),
        "averaged": averaged.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "seconds": seconds,
    }
    written = folder / "state.part"
    torch.save(state, written)
    written.rename(folder / "state.pt")


def _load(folder: Path, model: nn.Module, averaged: nn.Module, optimizer: Optimizer) -> tuple[int, float]:
    if not (folder / "state.pt").exists():
        return 0, 0.0
    state = torch.load(folder / "state.pt", weights_only=True)
    model.load_state_dict(state["model"])
    averaged.load_state_dict(state["averaged"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["seconds"]


def trained(model: nn.Module, folder: Path) -> nn.Module:
    """The model with the averaged weights that `folder` holds."""
    if not (folder / "state.pt").exists():
        raise FileNotFoundError(f"{folder} holds no training state. Train {folder.name} first.")
    state = torch.load(folder / "state.pt", weights_only=True)["averaged"]
    model.load_state_dict({key.removeprefix("module."): value for key, value in state.items() if key != "n_averaged"})
    return model.eval()
