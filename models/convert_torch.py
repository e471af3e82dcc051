"""Convert an official MambaIRv2-light torch checkpoint: python -m ppsr2q.models.convert_torch IN.pth OUT.safetensors

torch is needed for this command only.
"""
from __future__ import annotations

import sys
from typing import Dict

import numpy as np

from ppsr2q.core.errors import UserError

_LINEAR = ("wqkv", "proj", "out_proj", "fc1", "fc2", "route.0", "route.2")


def to_paddle_layout(state: Dict[str, np.ndarray]) -> Dict[str, np.ndarray]:
    """Official torch arrays -> Paddle's layout: the weights of Linear layers are transposed, all others kept."""
    def convert(key, value):
        layer = key[:-len(".weight")] if key.endswith(".weight") else ""
        is_linear = value.ndim == 2 and any(layer.endswith(f".{name}") for name in _LINEAR)
        return np.ascontiguousarray(value.T if is_linear else value)

    return {key: convert(key, value) for key, value in state.items()}


def main(arguments=None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) != 2:
        print(__doc__)
        return 2
    source, target = arguments
    try:
        if not target.endswith(".safetensors"):
            raise UserError(f"{target}: a safetensors file is written; give it a name that ends in .safetensors")
        try:
            import torch
        except ImportError:
            raise UserError("reading a torch checkpoint needs torch: pip install torch") from None
        try:
            loaded = torch.load(source, map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(f"{source}: torch cannot read it ({error})") from None
        if isinstance(loaded, dict):  # BasicSR keeps the averaged weights beside or instead of the last ones
            loaded = loaded.get("params", loaded.get("params_ema", loaded))
        if not isinstance(loaded, dict) or not all(torch.is_tensor(value) for value in loaded.values()):
            raise UserError(f"{source}: not a checkpoint, expected tensors by name, alone or under 'params' or 'params_ema'")
        # half precisions that numpy does not have become float32; the buffers of indices stay integers
        state = {key: (value.float() if value.is_floating_point() else value).detach().numpy()
                 for key, value in loaded.items()}
        from ppsr2q.models import MambaIRv2Light
        from ppsr2q.models.checkpoint import load_state, save_weights
        scale = {12: 2, 48: 4}.get(len(state.get("upsample.0.bias", ())))
        if scale is None:
            raise UserError(f"{source}: not a MambaIRv2-light checkpoint for x2 or x4")
        model = MambaIRv2Light(scale)
        load_state(model, to_paddle_layout(state), source)
        save_weights(model, target, {"source": "official checkpoint, converted", "scale": scale})
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{target}: MambaIRv2-light x{scale}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
