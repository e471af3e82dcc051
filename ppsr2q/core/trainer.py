"""The training loop. It knows no method: a stage says what is minimised and by moving what."""
from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Protocol, Sequence, Tuple, Union

import numpy as np
import paddle

from ppsr2q.core import distributed, schedule
from ppsr2q.core.averaging import IterateAverage
from ppsr2q.core.config import default_values
from ppsr2q.core.dashboard import Dashboard
from ppsr2q.core.errors import Interrupted, UserError
from ppsr2q.core.progress import ProgressLine
from ppsr2q.core.parameters import ParameterGroup
from ppsr2q.core.resume import Comparison, RunState, load_checkpoint, save_checkpoint

__all__ = ["Batches", "ParameterGroup", "Stage", "Trainer", "TrainerSettings", "TrainResult"]

Batches = Callable[[int, int, int], Dict[str, Any]]
"""(iteration, index, count) -> slice ``index`` of the ``count`` that make up ``iteration``'s global batch.

It keeps no state: everything random in it is a function of the seed and the arguments, so that a resumed run
sees the same batches without restoring a generator.
"""


class Stage(Protocol):
    """What the trainer asks of a method; every rank asks the same."""

    name: str

    def parameter_groups(self) -> List[ParameterGroup]:
        """The trained parameters; called once."""

    def step(self, batch: Dict[str, Any]) -> Dict[str, paddle.Tensor]:
        """Scalar losses of one micro-batch; ``loss`` is minimised, the others are logged."""

    def after_update(self) -> Dict[str, float]:
        """Projections after each update; figures to log."""

    def validate(self) -> Dict[str, float]:
        """Figures on held-out data."""

    def dashboard(self, dashboard: Dashboard, iteration: int) -> None:
        """Histograms and pictures."""


@dataclasses.dataclass(frozen=True)
class TrainerSettings:
    """How to run a stage.

    Attributes:
        iterations: updates.
        accumulate: micro-batches per update and process.
        betas, epsilon: Adam's.
        schedule: ``cosine`` or ``multistep`` (with ``milestones`` and ``gamma``), see :mod:`core.schedule`.
        warmup: iterations of linear warm-up.
        min_lr_ratio: where the cosine ends, relative to its start.
        grad_clip: largest L2 norm of the gradient over all groups together; None: not clipped.
        average_last: the result is the mean of the iterates after the last so many updates; 0: the last iterate.
            Validation measures the mean from its first member on.
        log_every, save_every, validate_every: iterations between; ``validate_every`` 0: never.
    """

    iterations: int
    accumulate: int = 1
    betas: Tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    schedule: str = "cosine"
    warmup: int = 0
    min_lr_ratio: float = 0.0
    milestones: Sequence[int] = ()
    gamma: float = 0.5
    grad_clip: Optional[float] = None
    average_last: int = 0
    log_every: int = 10
    save_every: int = 200
    validate_every: int = 500

    def lr_factor(self, iteration: int) -> float:
        """Factor on every group's learning rate in ``iteration`` (0-based)."""
        if self.schedule == "cosine":
            return schedule.cosine(iteration, self.iterations, self.warmup, self.min_lr_ratio)
        if self.schedule == "multistep":
            return schedule.multistep(iteration, self.milestones, self.gamma, self.warmup)
        raise ValueError(f"expected cosine or multistep, got {self.schedule!r}")


def _defaults() -> Dict[str, Any]:
    """Values of options that a checkpoint from before there was such an option stands for."""
    settings = {f"settings.{field.name}": field.default for field in dataclasses.fields(TrainerSettings)
                if field.default is not dataclasses.MISSING}
    return {**settings, **{f"run.config.{key}": value for key, value in default_values().items()}}


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a run came to; ``seconds`` and ``history`` include the parts before a resume.

    ``history`` holds a dict per logged iteration: ``iteration`` (1-based) with either losses,
    ``gradient_norm`` and the stage's counters, or ``validation/...``; ``last_losses`` are the last losses.
    """

    iterations: int
    seconds: float
    last_losses: Dict[str, float]
    history: List[Dict[str, float]]


class Trainer:
    """Adam on a stage's parameters, with checkpoints, data parallelism and a dashboard.

    Args:
        stage: see :class:`Stage`.
        batches: see :data:`Batches`.
        checkpoint_path: the one file that is rewritten every ``save_every`` iterations, at the end, and when
            the run is interrupted.
        dashboard: None shows nothing.
        metadata: what this run is (config, hash of the weights, ...); a checkpoint of another run is refused.
        comparison: which of that may differ.
    """

    def __init__(self, stage: Stage, batches: Batches, settings: TrainerSettings,
                 checkpoint_path: Union[str, Path], dashboard: Optional[Dashboard] = None,
                 metadata: Optional[Mapping[str, Any]] = None, comparison: Comparison = Comparison()) -> None:
        self._comparison = dataclasses.replace(comparison, defaults={**_defaults(), **comparison.defaults})
        self._stage, self._batches, self._settings = stage, batches, settings
        self._path = Path(checkpoint_path)
        self._dashboard = dashboard or Dashboard(None)
        self._groups = stage.parameter_groups()
        self._parameters = [p for group in self._groups for p in group.parameters.values()]
        self._sizes = [int(np.prod(p.shape)) for p in self._parameters]
        self._average = IterateAverage(self._groups, settings.iterations - settings.average_last)
        self._optimizers = [
            paddle.optimizer.Adam(group.lr, beta1=settings.betas[0], beta2=settings.betas[1],
                                  epsilon=settings.epsilon, parameters=list(group.parameters.values()),
                                  use_multi_tensor=True)  # one operator for a thousand small tensors
            for group in self._groups]
        self._identity = {"run": dict(metadata or {}), "stage": stage.name,
                          "settings": dataclasses.asdict(settings), "processes": distributed.world_size()}
        self._stop_asked = False

    def run(self, resume: bool = False) -> TrainResult:
        """Train to the last iteration.

        Args:
            resume: go on from the checkpoint; without one the run starts at the beginning and says so.

        Raises:
            UserError: a loss or gradient that is not finite (the previous checkpoint stays), or a
                checkpoint of another run.
            Interrupted: SIGINT or SIGTERM came; the iteration was finished and the state saved.
        """
        state = self._start(resume)
        line = ProgressLine(self._stage.name, state.iteration, self._settings.iterations,
                            self._settings.log_every, sys.stdout if distributed.is_main() else None)
        with self._signals(), contextlib.closing(line):
            clock = time.monotonic() - state.seconds
            while state.iteration < self._settings.iterations:
                figures, stop = self._iterate(state.iteration)
                state.iteration += 1
                self._average.add(state.iteration)
                state.seconds = time.monotonic() - clock
                self._report(state, figures, line)
                if stop or self._due(state.iteration, self._settings.save_every):
                    self._save(state)
                if stop:
                    raise Interrupted(f"stopped after iteration {state.iteration} of "
                                      f"{self._settings.iterations}; saved {self._path}")
        self._average.apply()
        last = next(entry for entry in reversed(state.history) if "loss" in entry)
        last = {key: value for key, value in last.items() if key != "iteration"}
        return TrainResult(state.iteration, state.seconds, last, state.history)

    def _start(self, resume: bool) -> RunState:
        if resume and self._path.exists():
            return load_checkpoint(self._path, self._groups, self._optimizers, self._average, self._identity,
                                   self._comparison)
        if resume and distributed.is_main():
            print(f"[{self._stage.name}] nothing to resume at {self._path}: starting at the beginning")
        for parameter in self._parameters:  # ranks may have drawn different starts
            distributed.broadcast_(parameter)
        return RunState()

    def _due(self, done: int, every: int) -> bool:
        return bool(every) and (done % every == 0 or done == self._settings.iterations)

    def _iterate(self, iteration: int) -> Tuple[Dict[str, float], bool]:
        """One update: the losses, averaged over the global batch, and whether a rank was asked to stop."""
        count = self._settings.accumulate * distributed.world_size()
        sums: Dict[str, paddle.Tensor] = {}
        for micro in range(self._settings.accumulate):
            index = micro * distributed.world_size() + distributed.rank()
            losses = self._stage.step(self._batches(iteration, index, count))
            (losses["loss"] / self._settings.accumulate).backward()
            for key, value in losses.items():
                value = value.detach().astype("float32").reshape([1]) / self._settings.accumulate
                sums[key] = sums[key] + value if key in sums else value
        gradient, losses, stop = self._reduce(sums)
        norm = float(paddle.linalg.norm(gradient))
        self._refuse_broken({**losses, "gradient": norm}, iteration)
        if self._settings.grad_clip is not None:
            gradient = gradient * (self._settings.grad_clip / max(norm, self._settings.grad_clip))
        self._update(gradient, self._settings.lr_factor(iteration))
        return {**losses, "gradient_norm": norm, **self._stage.after_update()}, stop

    def _reduce(self, sums: Mapping[str, paddle.Tensor]) -> Tuple[paddle.Tensor, Dict[str, float], bool]:
        """Mean over the ranks of gradients, losses and the wish to stop, in one exchange."""
        gradients = [(paddle.zeros_like(p) if p.grad is None else p.grad).reshape([-1])
                     for p in self._parameters]
        stop = paddle.to_tensor([float(self._stop_asked)])
        flat = paddle.concat([*gradients, *sums.values(), stop])
        distributed.all_reduce_mean_(flat)
        gradient, rest = flat[:sum(self._sizes)], flat[sum(self._sizes):].numpy()
        return gradient, {key: float(value) for key, value in zip(sums, rest)}, bool(rest[-1] > 0)

    def _refuse_broken(self, figures: Mapping[str, float], iteration: int) -> None:
        broken = [f"{key} is {value}" for key, value in figures.items() if not math.isfinite(value)]
        if broken:
            kept = f"; the last checkpoint, {self._path}, is unchanged" if self._path.exists() else ""
            raise UserError(f"iteration {iteration + 1} of stage {self._stage.name}: {', '.join(broken)} "
                            f"(a smaller learning rate, or grad_clip, may help){kept}")

    def _update(self, gradient: paddle.Tensor, factor: float) -> None:
        for parameter, part in zip(self._parameters, paddle.split(gradient, self._sizes)):
            parameter.grad = part.reshape(parameter.shape)
        for group, optimizer in zip(self._groups, self._optimizers):
            optimizer.set_lr(group.lr * factor)
            optimizer.step()
            optimizer.clear_grad()

    def _report(self, state: RunState, figures: Dict[str, float], line: ProgressLine) -> None:
        done = state.iteration
        rates = {group.name: group.lr * self._settings.lr_factor(done - 1) for group in self._groups}
        line.update(done, figures, max(rates.values()))
        if done == 1 or self._due(done, self._settings.log_every):
            state.history.append({"iteration": done, **figures})
            for key, value in figures.items():
                self._dashboard.scalar(f"train/{key}", value, done)
            for key, value in rates.items():
                self._dashboard.scalar(f"learning_rate/{key}", value, done)
        if self._due(done, self._settings.validate_every):
            with self._average.applied():
                found = {f"validation/{key}": value for key, value in self._stage.validate().items()}
                self._stage.dashboard(self._dashboard, done)
            state.history.append({"iteration": done, **found})
            for key, value in found.items():
                self._dashboard.scalar(key, value, done)
            line.message(f"after {done}: " + "  ".join(f"{key} {value:.4f}" for key, value in found.items()))

    def _save(self, state: RunState) -> None:
        if distributed.is_main():
            save_checkpoint(self._path, self._groups, self._optimizers, self._average, state, self._identity)
        distributed.barrier()  # the launcher ends all processes as soon as one has left

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """The first SIGINT or SIGTERM asks to stop after the iteration; the second one acts as always."""
        if threading.current_thread() is not threading.main_thread():  # Python delivers signals there only
            yield
            return
        previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def restore() -> None:
            for number, handler in previous.items():
                signal.signal(number, handler)

        def ask(number: int, frame: Any) -> None:
            self._stop_asked = True
            if distributed.world_size() == 1:  # the launcher passes on what the terminal has sent already
                restore()

        for number in previous:
            signal.signal(number, ask)
        try:
            yield
        finally:
            restore()
