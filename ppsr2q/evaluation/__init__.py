"""The measuring protocol, tiled upscaling, and results as records and tables."""
