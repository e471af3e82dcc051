"""Parts that the architectures share."""
from __future__ import annotations

from typing import Callable, NamedTuple, Tuple

import paddle

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K; a constant of the official networks, not in their checkpoints


class Operation(NamedTuple):
    """A counted operation of a forward pass.

    ``operands`` names the quantizers (plan names) through which both of its factors pass; an operation is low-bit
    when all of them quantize. Without operands it always runs in floating point.
    """

    name: str
    macs: int
    operands: Tuple[str, ...] = ()


def pad_symmetric(x: paddle.Tensor, multiple: int) -> paddle.Tensor:
    """Extend (B, C, h, w) below and to the right to multiples of ``multiple`` by mirroring with the edge repeated.

    Equals the official "append the flipped image and crop" wherever that is defined, and keeps mirroring for
    images smaller than the padding, down to 1 x 1.
    """
    for axis in (2, 3):
        size = x.shape[axis]
        if paddle.in_dynamic_mode() and size % multiple == 0:
            continue
        padded = (size + multiple - 1) // multiple * multiple
        index = paddle.arange(padded) % (2 * size)
        x = paddle.index_select(x, paddle.minimum(index, 2 * size - 1 - index), axis=axis)
    return x


def as_graph_block(function: Callable[[paddle.Tensor], paddle.Tensor], x: paddle.Tensor) -> paddle.Tensor:
    """``function(x)`` as a block of its own in a graph that is being exported (a loop of one turn).

    Paddle's executor analyses a block in time that grows with the square of its operators: a quantized network in
    one block takes minutes to start, in twenty blocks a second.
    """
    _, y = paddle.static.nn.while_loop(lambda turn, _: turn < 1, lambda turn, x: (turn + 1, function(x)),
                                       [paddle.zeros([1], "int64"), paddle.assign(x)])  # the loop may reuse its input
    return y


def to_tokens(image: paddle.Tensor) -> paddle.Tensor:
    """(B, C, H, W) -> (B, H W, C), raster order."""
    return image.flatten(2).transpose([0, 2, 1])


def to_image(tokens: paddle.Tensor, size: Tuple[int, int]) -> paddle.Tensor:
    """(B, H W, C) -> (B, C, H, W)."""
    return tokens.transpose([0, 2, 1]).reshape([-1, tokens.shape[-1], size[0], size[1]])
