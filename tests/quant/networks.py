"""A small network of a user's own, for tests of the quantization room."""
from paddle import nn


class Small(nn.Layer):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2D(3, 8, 3, padding=1)
        self.head = nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 3))

    def forward(self, x):
        return self.head(self.conv(x).transpose([0, 2, 3, 1]))
