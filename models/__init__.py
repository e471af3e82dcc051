"""Pure super-resolution architectures as Paddle layers; they know where they can be quantized, not how."""
import ppsr2q.ops  # noqa: F401  settles the environment before Paddle is imported, or says how to get it
from ppsr2q.models.mambairv2 import MambaIRv2Light

ARCHITECTURES = {"mambairv2_light": MambaIRv2Light}

__all__ = ["ARCHITECTURES", "MambaIRv2Light"]
