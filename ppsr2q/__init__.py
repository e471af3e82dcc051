"""ppsr2q: post-training quantization of super-resolution networks to 4, 2 and 1 bit with SPR²Q.

Importing this package does not import Paddle; the rooms that compute (``ops``, ``models``, ``quant``,
``spr2q``) do, and say how to get it when it is absent.
"""

__version__ = "0.1.0"
