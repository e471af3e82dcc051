"""Fused networks for PyTorch: one safetensors file that the official network loads (``torch_loader.py``)."""
from __future__ import annotations

from typing import Any, Dict, Mapping

import numpy as np

from ppsr2q.core.files import PathLike, save_artifact
from ppsr2q.deploy.packed import TensorQuantizer
from ppsr2q.models.checkpoint import official_arrays
from ppsr2q.models.convert_torch import to_paddle_layout
from ppsr2q.models.mambairv2 import WINDOW
from ppsr2q.ops.attention import relative_position_index

TORCH_KIND = "network for PyTorch"


def torch_state(parameters: Mapping[str, np.ndarray]) -> Dict[str, np.ndarray]:
    """The parameters of a network, by our names and in Paddle's layout, as the official state dict: every key that
    ``MambaIRv2Light.load_state_dict`` wants."""
    state = to_paddle_layout(official_arrays(parameters))  # it transposes, so it is its own inverse
    positions = relative_position_index(WINDOW).numpy().reshape(2 * [WINDOW**2])
    return {**state, "relative_position_index_SA": positions}


def write_torch(path: PathLike, parameters: Mapping[str, np.ndarray], quantizers: Mapping[str, TensorQuantizer],
                metadata: Mapping[str, Any]) -> None:
    """Write a fused network under the official names, atomically.

    Args:
        parameters: by our names; fused, so that their quantizers have no more to do.
        quantizers: of the activations, and of what a network computes from parameters alone (A, dt_bias, prompt_table),
            by plan name. They go into the metadata, since tensors that are no parameters would keep
            ``load_state_dict`` from being strict.
        metadata: provenance.

    Raises:
        UserError: the file cannot be written.
    """
    save_artifact(path, torch_state(parameters), TORCH_KIND,
                  {**metadata, "quantizers": {name: vars(quantizer) for name, quantizer in quantizers.items()}})
