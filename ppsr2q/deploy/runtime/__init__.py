"""Integer CPU runtime: executes packed models with NumPy and a C++ library, without Paddle."""
from ppsr2q.deploy.runtime.engine import Runtime

__all__ = ["Runtime"]
