"""Data sets: COCO, VOC and YOLO files in, padded batches out."""
