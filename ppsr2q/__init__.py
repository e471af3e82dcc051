"""ppsr2q: post-training quantization of super-resolution networks to 4, 2 and 1 bit with SPR²Q.

Importing this package does not import Paddle, but settles what its import would read once and for all
(``core.environment``). The rooms that compute (``ops``, ``models``, ``quant``, ``spr2q``) import it, and say how to get
it when it is absent.
"""
import warnings

from ppsr2q.core.environment import prepare_environment

__version__ = "0.1.0"

prepare_environment()
# Paddle's import says so wherever there is no ccache; nothing here is compiled with Paddle's tools
warnings.filterwarnings("ignore", message="No ccache found")
