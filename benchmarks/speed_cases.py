"""What one call of each case of ``speed_training.py`` does, and the functions its child processes run."""
from __future__ import annotations

import functools
import time
from statistics import median
from typing import Callable, Dict, FrozenSet, Optional, Sequence, Union

import numpy as np
import paddle

from benchmarks import timing
from benchmarks.speed_plan import PEER, PEER_KEPT, SEED, Case, Sources
from ppsr2q.core.config import load_config
from ppsr2q.core.environment import keep_freed_memory
from ppsr2q.core.errors import UserError
from ppsr2q.models import ARCHITECTURES
from ppsr2q.models.checkpoint import load_weights
from ppsr2q.models.initialization import official_initialization
from ppsr2q.ops import dispatch, native
from ppsr2q.quant import CalibrationSettings, calibrate, quantize
from ppsr2q.spr2q.group_training import GroupTraining
from ppsr2q.spr2q.rectifier import attach_rectifiers, freeze_gates
from ppsr2q.spr2q.routing_calibration import RoutingCalibration
from ppsr2q.workflow.networks import build_plan

POLICIES: Dict[str, Union[str, FrozenSet[str]]] = {
    "reference": "reference",
    "scan": frozenset({"selective_scan"}),
    "fused": frozenset(dispatch.ARGUMENTS),  # not "auto", which would hide a missing kernel
}
Call = Callable[[], object]


def _images(batch: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(SEED).random((batch, 3, height, width), dtype=np.float32)


def _network(scale: int, weights: Optional[str] = None):
    network = ARCHITECTURES["mambairv2_light"](scale)
    if weights is None:
        official_initialization(network, SEED)
    else:
        load_weights(network, weights)
    network.eval()
    return network


def _forward(network, images: np.ndarray) -> Call:
    x = paddle.to_tensor(images)

    def call():
        with paddle.no_grad():
            return network(x)
    return call


def _step(case: Case) -> Call:
    """Teacher's forward, student's forward and backward, Adam: the trainer's step without its log."""
    config = load_config()
    teacher = _network(scale=2)
    for parameter in teacher.parameters():
        parameter.stop_gradient = True
    plan = build_plan(config)
    student = quantize(teacher, plan)
    attach_rectifiers(student, plan.resolve(teacher), config.rectifier, SEED)
    images = _images(*case.shape)
    sample = paddle.to_tensor(images[:1, :, :32, :32])
    calibrate(student, sample, CalibrationSettings(candidates=2, max_samples=1024))  # any sane bounds do
    if case.kind == "osrc":
        freeze_gates(student, sample)
        stage = RoutingCalibration(student, teacher, config.loss, learning_rate=config.route_calib.lr)
    else:
        rates = {"bounds": config.train.lr_bounds, "rectifiers": config.train.lr_rectifier,
                 "gates": config.train.lr_gate}
        stage = GroupTraining(student, teacher, config.loss, learning_rates=rates)
    optimizers = [paddle.optimizer.Adam(group.lr, parameters=list(group.parameters.values()),
                                        use_multi_tensor=True)
                  for group in stage.parameter_groups()]

    def call():
        losses = stage.step({"lr": images})
        losses["loss"].backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.clear_grad()
        stage.after_update()
        return losses["loss"]
    return call


def call_of(case: Case, variant: str, sources: Sources = Sources()) -> Call:
    """What one call of a variant does, in a process of its own. Only our current state keeps freed memory, as the tools
    do, and ``PEER_KEPT``.

    Raises:
        UserError: no kernels on this machine, or a peer that cannot be used.
    """
    reason = native.why_unavailable()
    if reason is not None:
        raise UserError(f"this benchmark measures the CPU kernels, which are not available: {reason}")
    if variant in ("fused", PEER_KEPT):
        keep_freed_memory()
    if variant in (PEER, PEER_KEPT):
        from benchmarks.peer import peer_forward
        return peer_forward(sources.peer, _network(4, sources.weights), _images(*case.shape))
    call = _forward(_network(4, sources.weights), _images(*case.shape)) if case.kind == "forward" else _step(case)
    return functools.partial(_with_policy, POLICIES[variant], call)


def _with_policy(policy, call: Call):
    with dispatch.use(policy):
        return call()


# ---------------------------------------------------------------- what child processes run

def peak_of(case: Case, variant: str, sources: Sources) -> int:
    """Peak memory in bytes of a process that makes one call, Paddle and network included."""
    call = call_of(case, variant, sources)
    timing.limit_memory()
    call()
    return timing.peak_bytes()


def growth(sides: Sequence[int], rounds: int) -> Dict[str, float]:
    """Side of a square image in pixels -> median seconds of the fused forward."""
    keep_freed_memory()
    network = _network(scale=4)
    fused = functools.partial(_with_policy, POLICIES["fused"])
    forwards = {str(side): functools.partial(fused, _forward(network, _images(1, side, side)))
                for side in sides}
    return {side: median(samples) for side, samples in timing.interleave(forwards, rounds).items()}


def check_peer(sources: Sources) -> float:
    """Largest difference between the peer's output and ours on a padded, shifted, non-square image.

    Raises:
        UserError: they differ, or the peer cannot be used.
    """
    from benchmarks.peer import check
    return check(sources.peer, _network(4, sources.weights), _images(1, 40, 72))


def matmul_gflops(size: int = 1024, repeats: int = 20) -> float:
    """Median speed of Paddle's float32 product of two square matrices."""
    a, samples = paddle.rand([size, size]), []
    for _ in range(repeats):
        started = time.perf_counter()
        paddle.matmul(a, a)
        samples.append(time.perf_counter() - started)
    return 2 * size**3 / median(samples) / 1e9
