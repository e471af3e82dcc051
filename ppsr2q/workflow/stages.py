"""The network of a config after a stage (Paddle)."""
from __future__ import annotations

from pathlib import Path
from typing import Optional

from paddle import nn

from ppsr2q.core.config import Config
from ppsr2q.core.errors import UserError
from ppsr2q.core.files import load_artifact
from ppsr2q.spr2q.fuse import FUSED_KIND
from ppsr2q.workflow.exporting import load_calibrated
from ppsr2q.workflow.networks import (build_network, build_quantized, check_architecture, check_quantizers,
                                      network_of_fused)
from ppsr2q.workflow.paths import paths, require_current, require_stage
from ppsr2q.workflow.starting import load_searched_bounds
from ppsr2q.workflow.training import has_routing, load_trained, mean_gate_student


def _searched(config: Config, config_path: str) -> nn.Layer:
    path = paths(config)["bounds"]
    require_stage(path, "train", config_path)
    quantized = build_quantized(config)
    load_searched_bounds(config, quantized)
    start = quantized.origin.metadata["config"]["train"].get("start_from")
    if start is not None:
        raise UserError(f"{path}: of the network that {start} holds, with its rectifiers, not of the full-precision one; "
                        "measure the run that made that file")
    return quantized.student


def _fused(config: Config, config_path: str) -> nn.Layer:
    path = paths(config)["fused"]
    require_stage(path, "export", config_path)
    artifact = load_artifact(path, FUSED_KIND)
    check_architecture(artifact, config, path)
    check_quantizers(artifact, config, path)
    routed = has_routing(config)
    require_current(path, artifact.metadata.get("source_sha256"), paths(config)["table" if routed else "rectifiers"],
                    "export")
    if routed:
        require_current(path, artifact.metadata.get("rectifiers_sha256"), paths(config)["rectifiers"], "route_calib")
    return network_of_fused(artifact, path, config.model.routing, config.model.routing_seed)


def default_stage(config: Config) -> str:
    """The state of a run that is measured or used where none is named."""
    return "fp" if config.quant.bits is None else "fused"


def file_of_stage(config: Config, stage: str) -> Optional[Path]:
    """The file that holds what a stage made; None where it made none (``fp``, ``bicubic``)."""
    made_by = {"searched": "bounds", "bounds": "rectifiers", "rgt": "rectifiers", "fused": "fused",
               "osrc": "table" if has_routing(config) else "rectifiers"}
    return paths(config)[made_by[stage]] if stage in made_by else None


def network_of_stage(config: Config, config_path: str, stage: Optional[str] = None) -> nn.Layer:
    """The network of a config after a stage: ``fp``, ``searched`` bounds, trained ``bounds`` (without rectifiers),
    ``rgt`` (mean gates), ``osrc`` (before fusing) or ``fused``; default ``fused``, or ``fp`` with ``quant.bits: null``.

    Raises:
        UserError: naming the tool that makes what is missing, or what was made with other quantizers.
    """
    stage = stage or default_stage(config)
    if stage == "fp":
        return build_network(config)
    if stage == "bounds":
        if has_routing(config):
            raise UserError("--stage bounds is of runs that have nothing to route (rectifier.enabled: false, "
                            "rectifier.number: 1); this config has gates: take rgt or osrc")
        return load_trained(config, config_path).student
    if stage == "rgt":
        return mean_gate_student(config, config_path).student
    if stage == "osrc":
        return load_calibrated(config, config_path).student
    return {"searched": _searched, "fused": _fused}[stage](config, config_path)
