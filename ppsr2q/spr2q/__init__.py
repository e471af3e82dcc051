"""The method: rectifier group training, offline static routing calibration, and fusing (SPR²Q)."""
import ppsr2q.ops  # noqa: F401  settles the environment before Paddle is imported, or says how to get it
