"""Object detection and instance segmentation: (S)ViT-Adapter backbones and Mask R-CNN around them.

SViT: Liu et al., "Revisiting Token Pruning for Object Detection and Instance Segmentation",
WACV 2024 (uzh-rpg/svit @ d2472c13). ViT-Adapter: Chen et al., "Vision Transformer Adapter for
Dense Predictions", ICLR 2023. Mask R-CNN as mmdet 2.28 evaluates it.
"""
