"""Measuring a network: ``tools/evaluate.py``. Paddle is imported only for its own engine."""
from __future__ import annotations

import hashlib
import json
import math
from functools import partial
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from ppsr2q import deploy
from ppsr2q.core.config import Config, config_to_dict, without_folders
from ppsr2q.core.errors import UserError
from ppsr2q.core.files import load_artifact
from ppsr2q.data.datasets import TestSet
from ppsr2q.evaluation.evaluator import bicubic_upscaler, evaluate
from ppsr2q.evaluation.records import circumstances
from ppsr2q.evaluation.tiling import Upscaler, run_official_tiles
from ppsr2q.workflow.progress import Progress


def load_upscaler(config: Config, config_path: Optional[str], model: Optional[str], stage: Optional[str],
                  engine: str = "paddle", threads: Optional[int] = None) -> Tuple[Upscaler, int]:
    """(callable image -> image, scale) from a fused or packed file, or from the config's stage.

    Args:
        engine: ``paddle``, or one of ``ppsr2q.deploy.ENGINES``: for packed files, without Paddle.
        threads: of those engines; Paddle takes its number from OMP_NUM_THREADS.

    Raises:
        UserError: neither a config nor a file was given, or both a file and a stage, or an engine that cannot do it.
    """
    if config_path is None and model is None:
        raise UserError("give -c CONFIG or --model FILE")
    if model is not None and stage is not None:
        raise UserError(f"--stage {stage} is a state of a config's run; leave --model {model} out, or the stage")
    if engine != "paddle":
        return _packed_upscaler(config, model, engine, threads)
    if threads is not None:
        raise UserError(f"--threads {threads} is of --engine {' or '.join(deploy.ENGINES)}; Paddle's threads are set with "
                        "OMP_NUM_THREADS")
    if stage == "bicubic":
        return bicubic_upscaler(config.model.scale), config.model.scale
    from ppsr2q.workflow.networks import load_model, upscaler
    if model is not None:
        network = load_model(model, config.model.routing, config.model.routing_seed)
    else:
        from ppsr2q.workflow.stages import network_of_stage
        network = network_of_stage(config, config_path, stage)
    return upscaler(network), network.scale


def _packed_upscaler(config: Config, model: Optional[str], engine: str,
                     threads: Optional[int]) -> Tuple[Upscaler, int]:
    if model is None:
        raise UserError(f"--engine {engine} needs --model FILE, a packed model (tools/export.py)")
    if config.model.routing != "argmax":
        raise UserError(f"model.routing is {config.model.routing!r}; packed models route by argmax only")
    loaded = deploy.load(model, threads, engine)
    return loaded.upscale, loaded.scale


def described(config: Config, config_path: Optional[str], model: Optional[str], stage: Optional[str],
              engine: str) -> Dict[str, Any]:
    """What :func:`load_upscaler` loads, for a report: a file with its SHA-256, or a config with its stage, the SHA-256 of the
    file that the stage made and the options; and when, by what and on what machine it is measured."""
    if model is not None:
        network = {"model": Path(model).name, "sha256": _sha256(Path(model))}
    else:
        from ppsr2q.workflow.stages import default_stage, file_of_stage
        stage = stage or default_stage(config)
        made = file_of_stage(config, stage)
        network = {"config": Path(config_path).name, "stage": stage, "sha256": None if made is None else _sha256(made),
                   "options": without_folders(config_to_dict(config))}
    return {**network, "engine": engine, **circumstances()}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def as_json(results: Any) -> str:
    """JSON, which knows no infinity: the PSNR of an image that is met exactly is written as null."""
    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(inner) for key, inner in value.items()}
        return None if isinstance(value, float) and math.isinf(value) else value
    return json.dumps(finite(results), indent=1, allow_nan=False) + "\n"


def scale_of(config: Config, model: Optional[str]) -> int:
    """Scale of what :func:`load_upscaler` will load; the config's where a file does not tell (it will be refused then)."""
    architecture = None if model is None else load_artifact(model).metadata.get("architecture")
    return architecture["scale"] if isinstance(architecture, dict) and "scale" in architecture else config.model.scale


def find_sets(config: Config, scale: int, sets: List[str]) -> List[TestSet]:
    """The test sets under ``data.root``; tools ask before they load a network whether these are there.

    Raises:
        UserError: no folder or no set is given, or one that is not there, is empty or unpaired.
    """
    if config.data.root is None:
        raise UserError("data.root is not set: give the folder that holds the test sets (-o data.root=FOLDER)")
    if not sets:
        raise UserError("data.sets is empty: name at least one test set (--sets, or -o data.sets=[Set5])")
    return [TestSet(config.data.root, name, scale) for name in sets]


def measure(config: Config, upscale: Upscaler, scale: int, sets: List[str]) -> Dict[str, Any]:
    """Evaluate on test sets under ``data.root``; returns the JSON of ``tools/evaluate.py``."""
    test_sets = find_sets(config, scale, sets)
    if config.eval.mode == "official_tiles":
        upscale = partial(run_official_tiles, upscale, scale=scale)
    progress = Progress("evaluating", sum(len(test_set) for test_set in test_sets))
    results = evaluate(upscale, test_sets, lambda *_: progress.advance())
    progress.close()
    results["protocol"].update(mode=config.eval.mode, routing=config.model.routing,
                               routing_seed=config.model.routing_seed)
    return results
