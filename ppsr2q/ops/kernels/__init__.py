"""Paddle bindings of the CPU kernels: the functions of ``ppsr2q.ops``, for calls that ``dispatch`` serves."""
from ppsr2q.ops.kernels.attention import window_attention
from ppsr2q.ops.kernels.convolution import convolution
from ppsr2q.ops.kernels.depthwise import gated_mixing, positional_gate
from ppsr2q.ops.kernels.distance import feature_distance
from ppsr2q.ops.kernels.fake_quantize import fake_quantize
from ppsr2q.ops.kernels.linear import linear, norm_linear
from ppsr2q.ops.kernels.routing import gather_rows, route, routed_prompt
from ppsr2q.ops.kernels.scan import selective_scan
from ppsr2q.ops.kernels.state_space import state_space

__all__ = ["convolution", "fake_quantize", "feature_distance", "gated_mixing", "gather_rows", "linear",
           "norm_linear", "positional_gate", "route", "routed_prompt", "selective_scan", "state_space", "window_attention"]
