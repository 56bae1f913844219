"""An ONNX graph as a PyTorch network that can be trained, operator by operator."""
