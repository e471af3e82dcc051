"""Paddle bindings of the CPU kernels: the same functions as in ``ppsr2q.ops``, for calls that ``dispatch`` serves."""
from ppsr2q.ops.kernels.fake_quantize import fake_quantize
from ppsr2q.ops.kernels.linear import linear, norm_linear
from ppsr2q.ops.kernels.scan import selective_scan

__all__ = ["fake_quantize", "linear", "norm_linear", "selective_scan"]
