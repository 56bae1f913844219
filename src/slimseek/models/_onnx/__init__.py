"""Models that came as ONNX graphs: their files read and checked, their nodes folded, run, changed and written."""
