"""Detectors as files for other programs: ONNX, OpenVINO and torch.export, checked against the detector."""
