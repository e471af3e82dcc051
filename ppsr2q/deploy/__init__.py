"""What ships: the packed file, exporters for other engines, and the integer runtime."""
