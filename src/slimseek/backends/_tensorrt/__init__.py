"""Packages for TensorRT: the graph as it is built from, the engine, and what stands in where no GPU is."""
