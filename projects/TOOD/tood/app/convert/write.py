"""Writes data sets: COCO files beside which images stay where they are, or folders of YOLO, Pascal
VOC and LabelMe with copies of the images.
"""
