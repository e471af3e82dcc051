"""Operators: a pure-Paddle reference for each and, where it pays, a CPU kernel behind the same function."""
from ppsr2q.core.environment import default_threads, require_paddle

require_paddle()

import paddle  # noqa: E402

_threads = default_threads()
if _threads is not None:
    paddle.base.core.set_num_threads(_threads)

from ppsr2q.ops.attention import window_attention  # noqa: E402
from ppsr2q.ops.convolution import convolution  # noqa: E402
from ppsr2q.ops.depthwise import gated_mixing, positional_gate  # noqa: E402
from ppsr2q.ops.distance import feature_distance  # noqa: E402
from ppsr2q.ops.fake_quantize import fake_quantize  # noqa: E402
from ppsr2q.ops.linear import linear, norm_linear  # noqa: E402
from ppsr2q.ops.norm import layer_norm  # noqa: E402
from ppsr2q.ops.points import QuantPoint, QuantPoints  # noqa: E402
from ppsr2q.ops.routing import Routing, gather_rows, route, routed_prompt  # noqa: E402
from ppsr2q.ops.scan import selective_scan  # noqa: E402
from ppsr2q.ops.state_space import state_space  # noqa: E402

__all__ = ["QuantPoint", "QuantPoints", "Routing", "convolution", "fake_quantize", "feature_distance", "gated_mixing",
           "gather_rows", "layer_norm", "linear", "norm_linear", "positional_gate", "route", "routed_prompt",
           "selective_scan", "state_space", "window_attention"]
