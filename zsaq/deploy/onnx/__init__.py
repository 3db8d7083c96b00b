"""The ONNX graph of a student, and ONNX Runtime's sessions."""
