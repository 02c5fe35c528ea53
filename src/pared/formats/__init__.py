"""Models as files: documents of weights and structure, ONNX, and a script that needs no pared."""
