"""Images: reading and writing, MATLAB-exact bicubic, test sets, training patches, checks of a data folder."""
