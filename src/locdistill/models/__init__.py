"""Dense detectors: backbone, pyramid, head, and the conversion of predictions to detections."""
