"""vision_vit: Vision Transformers, image pre-training and few-shot transfer."""
