"""A tiny image network with blocks, standing in for a backbone in tests of the method."""
from paddle import nn

from ppsr2q import ops
from ppsr2q.core.config import RectifierConfig
from ppsr2q.quant import Plan, PlanEntry, QuantizerOptions, calibrate, quantize
from ppsr2q.spr2q.rectifier import attach_rectifiers

CHANNELS = 6


class Block(nn.Layer):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(CHANNELS)
        self.fc = nn.Linear(CHANNELS, CHANNELS)
        self.points = ops.QuantPoints("table")
        self.table = self.create_parameter([CHANNELS])

    def forward(self, x):
        y, = ops.norm_linear(x, self.norm, [self.fc])
        return x + y * self.points.table(self.table)


class Tiny(nn.Layer):
    scale = 1

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2D(3, CHANNELS, 1)
        self.blocks = nn.LayerList([Block(), Block()])
        self.last = nn.Conv2D(CHANNELS, 3, 1)

    def forward(self, x, return_features=False):
        image = self.first(x)
        tokens, features = image.flatten(2).transpose([0, 2, 1]), []
        for block in self.blocks:
            tokens = block(tokens)
            features.append(tokens)
        y = self.last(tokens.transpose([0, 2, 1]).reshape(image.shape))
        return (y, features) if return_features else y


ENTRIES = [PlanEntry("blocks.*.fc", rectifier=True), PlanEntry("blocks.*.points.table", parameter="table")]


def make(images, bits=2, seed=0, **settings):
    """(teacher, student with rectifiers and searched bounds, resolved plan)."""
    import paddle
    paddle.seed(seed)
    teacher = Tiny()
    plan = Plan(ENTRIES, bits, options=QuantizerOptions())
    tensors = plan.resolve(teacher)
    for parameter in teacher.parameters():
        parameter.stop_gradient = True
    student = quantize(teacher, plan)
    attach_rectifiers(student, tensors, RectifierConfig(**settings), seed)
    calibrate(student, images)
    return teacher, student, tensors
