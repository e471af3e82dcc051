"""Pure super-resolution architectures as Paddle layers; they know where they can be quantized, not how."""
from ppsr2q.models.mambairv2 import MambaIRv2Light

ARCHITECTURES = {"mambairv2_light": MambaIRv2Light}

__all__ = ["ARCHITECTURES", "MambaIRv2Light"]
