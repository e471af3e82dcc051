"""The engines of ``speed_inference.py``, and what its child processes run. Every engine imports its own package only, so
that peak memory is its own."""
from __future__ import annotations

import functools
import time
from pathlib import Path
from statistics import median
from typing import Any, Callable, Dict, Sequence, Tuple

import numpy as np

from benchmarks import timing
from benchmarks.inference_plan import ENGINES, RUNTIME, SEED
from ppsr2q.deploy.packed import read_packed

Upscale = Callable[[np.ndarray], np.ndarray]


def _image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(SEED).random((height, width, 3), dtype=np.float32)


def _paddle_eager(path: Path, threads: int) -> Upscale:
    from ppsr2q.core.environment import keep_freed_memory
    from ppsr2q.workflow.networks import load_packed, upscaler
    keep_freed_memory()  # as the tools do
    return upscaler(load_packed(path))


def _paddle_inference(path: Path, threads: int) -> Upscale:
    """By ``paddle.jit.load``: the predictor of ``paddle.inference`` 3.3.1 ends in a std::exception on this network."""
    import paddle

    from ppsr2q.workflow.exporting import save_inference_model
    from ppsr2q.workflow.networks import load_packed, upscaler
    folder = path.parent / "inference" / path.stem
    save_inference_model(load_packed(path), folder)
    network = paddle.jit.load(str(folder / "model"))
    network.eval()
    return upscaler(network)


def _onnxruntime(target: str, path: Path, threads: int) -> Upscale:
    from ppsr2q.deploy.onnx_export import load_upscaler
    return load_upscaler(read_packed(path), threads, target).upscale


def _openvino(optimize: bool, precision: str, path: Path, threads: int) -> Upscale:
    from ppsr2q.deploy.openvino import load_upscaler
    return load_upscaler(read_packed(path), threads, optimize, precision).upscale


def _runtime(path: Path, threads: int) -> Upscale:
    from ppsr2q.deploy.runtime import Runtime
    return Runtime(read_packed(path), threads).upscale


_MAKERS: Dict[str, Callable[[Path, int], Upscale]] = {
    "paddle_eager": _paddle_eager,
    "paddle_inference": _paddle_inference,
    "onnxruntime_fp32": functools.partial(_onnxruntime, "float"),
    "onnxruntime_int8": functools.partial(_onnxruntime, "ort"),
    "openvino_fp32": functools.partial(_openvino, True, "f32"),
    "openvino_fp32_decomposed": functools.partial(_openvino, False, "f32"),
    "openvino_bf16": functools.partial(_openvino, True, "bf16"),
    "openvino_int8": functools.partial(_openvino, True, "f32"),
    **{name: _runtime for name in RUNTIME},
}


def make(name: str, folder: Path, threads: int) -> Upscale:
    """An engine with its network, from the packed models in a folder.

    Raises:
        UserError: it cannot run here.
    """
    return _MAKERS[name](folder / f"{ENGINES[name].network}.safetensors", threads)


# ---------------------------------------------------------------- what child processes run

def call_of(name: str, folder: Path, size: Tuple[int, int], threads: int) -> Callable[[], object]:
    """One call of an engine on an image of (height, width)."""
    return functools.partial(make(name, folder, threads), _image(*size))


def peak_of(upscale: Upscale, size: Tuple[int, int], timed: bool) -> Dict[str, Any]:
    """``peak_bytes`` of this process, which loaded an engine, after one call; ``seconds`` of a second call if wanted."""
    call = functools.partial(upscale, _image(*size))
    timing.limit_memory()
    call()
    peak, started = timing.peak_bytes(), time.perf_counter()
    if not timed:
        return {"peak_bytes": peak}
    call()
    return {"peak_bytes": peak, "seconds": time.perf_counter() - started}


def look(name: str, folder: Path, size: Tuple[int, int], threads: int, timed: bool) -> Dict[str, Any]:
    """:func:`peak_of` an engine."""
    return peak_of(make(name, folder, threads), size, timed)


def first_look(name: str, folder: Path, size: Tuple[int, int], threads: int, timed: bool, data: str,
               test_set: str) -> Dict[str, Any]:
    """:func:`peak_of` an engine, and ``psnr_y``: mean PSNR-Y in dB of the network in ``folder/quality`` on a test set."""
    upscale = make(name, folder, threads)
    found = peak_of(upscale, size, timed)
    from ppsr2q.data.datasets import TestSet  # only now: its packages are no part of the engine's memory
    from ppsr2q.evaluation.evaluator import evaluate
    file = f"{ENGINES[name].network}.safetensors"
    timed_scale, scale = (read_packed(path / file).architecture["scale"] for path in (folder, folder / "quality"))
    upscale = upscale if scale == timed_scale else make(name, folder / "quality", threads)
    return {**found, "psnr_y": evaluate(upscale, [TestSet(data, test_set, scale)])[test_set]["psnr_y"]}


def parts(folder: Path, networks: Sequence[str], size: Tuple[int, int], rounds: int, threads: int) -> Dict[str, float]:
    """Network -> median seconds in our runtime on an image of (height, width)."""
    calls = {name: functools.partial(_runtime(folder / f"{name}.safetensors", threads), _image(*size))
             for name in networks}
    return {name: median(samples) for name, samples in timing.interleave(calls, rounds).items()}


def growth(name: str, folder: Path, sides: Sequence[int], rounds: int, threads: int) -> Dict[str, float]:
    """Side of a square image -> median seconds."""
    upscale = make(name, folder, threads)
    calls = {str(side): functools.partial(upscale, _image(side, side)) for side in sides}
    return {side: median(samples) for side, samples in timing.interleave(calls, rounds).items()}
