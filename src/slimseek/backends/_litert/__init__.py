"""Packages for LiteRT: a graph in ONNX becomes a file of its operators and weights."""
