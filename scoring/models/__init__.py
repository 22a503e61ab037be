"""Models of fraud: trained from labelled history, kept as one file, served by ONNX Runtime, explained exactly."""
