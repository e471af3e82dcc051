"""Paddle bindings of the CPU kernels: the same functions as in ``ppsr2q.ops``, for calls that ``dispatch`` serves."""
from ppsr2q.ops.kernels.attention import window_attention
from ppsr2q.ops.kernels.fake_quantize import fake_quantize
from ppsr2q.ops.kernels.scan import selective_scan

__all__ = ["fake_quantize", "selective_scan", "window_attention"]
