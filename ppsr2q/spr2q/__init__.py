"""The method: rectifier group training, offline static routing calibration, and fusing (SPR²Q)."""
