"""Dense detectors: backbone, pyramid, head, and the way from predictions to detections."""
