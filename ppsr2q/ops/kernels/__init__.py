"""Paddle bindings of the CPU kernels: the same functions as in ``ppsr2q.ops``, for calls that ``dispatch`` serves."""
from ppsr2q.ops.kernels.fake_quantize import fake_quantize

__all__ = ["fake_quantize"]
