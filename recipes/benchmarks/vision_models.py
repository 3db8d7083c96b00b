"""Vision architectures of transformers, one class each, with what a tiny one needs beyond `tiny.SMALL`."""

from typing import Any, Final

STAGES: Final = {"depths": [1, 1], "hidden_sizes": [32, 64]}
FOUR: Final = [16, 24, 32, 64]
RESNET: Final = {"model_type": "resnet", "embedding_size": 16, "depths": [1, 1, 1, 1], "hidden_sizes": FOUR}
RESNET_STAGES: Final = RESNET | {"layer_type": "basic", "out_features": ["stage1", "stage2", "stage3", "stage4"]}
VIT: Final = {
    **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"image_size": 64, "patch_size": 16},
}
WORDS: Final = {
    **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"vocab_size": 96, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
}
SWIN: Final = {"patch_size": 4, "embed_dim": 32, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4}
CONVNEXT: Final = {"num_stages": 4, "patch_size": 4, "depths": [1, 1, 1, 1], "hidden_sizes": FOUR}
VISION: Final[dict[str, dict[str, Any]]] = {
    # Transformers.
    "ViTForImageClassification": {},
    "DeiTForImageClassification": {},
    "BeitForImageClassification": {"use_relative_position_bias": True},
    "Data2VecVisionForImageClassification": {"use_relative_position_bias": True},
    "ViTMSNForImageClassification": {},
    "IJepaForImageClassification": {},
    "Dinov2ForImageClassification": {},
    "Dinov2WithRegistersForImageClassification": {},
    "DINOv3ViTModel": {},
    "ImageGPTForImageClassification": {"n_positions": 16, "vocab_size": 17},
    "SwinForImageClassification": SWIN,
    "Swinv2ForImageClassification": SWIN,
    "HieraForImageClassification": {
        **{"embed_dim": 32, "depths": [1, 1], "num_heads": [2, 4], "num_query_pool": 1},
        **{
            "masked_unit_size": [4, 4],
            "masked_unit_attention": [True, False],
            "image_size": [64, 64],
            "patch_size": [7, 7],
            "patch_stride": [4, 4],
        },
    },
    "PvtForImageClassification": {
        **{"depths": [1, 1, 1, 1], "hidden_sizes": FOUR, "num_attention_heads": [1, 2, 4, 4]},
        **{"mlp_ratios": [2, 2, 2, 2], "patch_sizes": [4, 2, 2, 2], "strides": [4, 2, 2, 2]},
    },
    "PvtV2ForImageClassification": {
        "depths": [1, 1, 1, 1],
        "hidden_sizes": FOUR,
        "num_attention_heads": [1, 2, 4, 4],
        "mlp_ratios": [2, 2, 2, 2],
    },
    "SegformerForImageClassification": {
        "depths": [1, 1, 1, 1],
        "hidden_sizes": FOUR,
        "num_attention_heads": [1, 2, 4, 4],
    },
    "SegformerForSemanticSegmentation": {
        "depths": [1, 1, 1, 1],
        "hidden_sizes": FOUR,
        "num_attention_heads": [1, 2, 4, 4],
        "decoder_hidden_size": 32,
    },
    "CvtForImageClassification": {
        **{"embed_dim": [16, 32, 64], "num_heads": [1, 2, 4], "depth": [1, 2, 3]},
    },
    "LevitForImageClassification": {
        **{"hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1], "key_dim": [8, 8, 8]},
        **{"down_ops": [["Subsample", 8, 4, 4, 2, 2], ["Subsample", 8, 4, 4, 2, 2]]},
    },
    "SwiftFormerForImageClassification": {"depths": [1, 1, 1, 1], "embed_dims": FOUR},
    "MobileViTForImageClassification": {
        **{"hidden_sizes": [32, 40, 48], "neck_hidden_sizes": [8, 16, 16, 24, 32, 40, 64], "patch_size": 2},
        **{"expand_ratio": 2.0},
    },
    "MobileViTV2ForImageClassification": {"width_multiplier": 0.25, "n_attn_blocks": [1, 1, 1], "patch_size": 2},
    "DinatForImageClassification": {"embed_dim": 32, "depths": [1, 1], "num_heads": [2, 4], "dilations": [[1], [1]]},
    "CLIPForImageClassification": {"vision_config": VIT, "text_config": WORDS},
    "CLIPVisionModel": {},
    "SiglipForImageClassification": {"vision_config": VIT, "text_config": WORDS},
    "SiglipVisionModel": {},
    "MetaClip2ForImageClassification": {"vision_config": VIT, "text_config": WORDS},
    "ViTMAEForPreTraining": {
        **{"decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2},
        **{"decoder_intermediate_size": 64},
    },
    # Convolutional nets.
    "ResNetForImageClassification": RESNET,
    "RegNetForImageClassification": {
        "embedding_size": 16,
        "depths": [1, 1, 1, 1],
        "hidden_sizes": FOUR,
        "groups_width": 8,
    },
    "ConvNextForImageClassification": CONVNEXT,
    "ConvNextV2ForImageClassification": {
        "num_stages": 4,
        "patch_size": 4,
        "depths": [1, 1, 1, 1],
        "hidden_sizes": FOUR,
    },
    "MobileNetV1ForImageClassification": {"depth_multiplier": 0.25, "min_depth": 8},
    "MobileNetV2ForImageClassification": {"depth_multiplier": 0.25, "min_depth": 8},
    "EfficientNetForImageClassification": {"width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 320},
    "BitForImageClassification": {
        "embedding_size": 16,
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [32, 64, 64, 64],
        "num_groups": 4,
    },
    "PoolFormerForImageClassification": {"depths": [1, 1, 1, 1], "hidden_sizes": FOUR, "mlp_ratio": 2.0},
    "FocalNetForImageClassification": {
        "embed_dim": 16,
        "depths": [1, 1],
        "focal_levels": [2, 2],
        "focal_windows": [3, 3],
    },
    "HGNetV2ForImageClassification": {
        **{
            "hidden_sizes": [24, 32, 64, 64],
            "stem_channels": [3, 8, 16],
            "stage_in_channels": FOUR,
            "stage_mid_channels": [8, 8, 16, 16],
        },
        **{
            "stage_out_channels": [24, 32, 64, 64],
            "stage_num_blocks": [1, 1, 1, 1],
            "stage_numb_of_layers": [2, 2, 2, 2],
        },
    },
    "TextNetForImageClassification": {
        **{
            "stem_out_channels": 16,
            "hidden_sizes": [16, *FOUR],
            "conv_layer_kernel_sizes": [[[3, 3]], [[3, 1]], [[1, 3]], [[3, 3]]],
        },
        **{"conv_layer_strides": [[1], [2], [2], [2]], "image_size": [64, 64]},
    },
    # Dense and boxed.
    "DPTForDepthEstimation": {
        **{
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": FOUR,
            "fusion_hidden_size": 16,
            "is_hybrid": False,
        },
    },
    "DPTForSemanticSegmentation": {
        **{
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": FOUR,
            "fusion_hidden_size": 16,
            "is_hybrid": False,
        },
    },
    "GLPNForDepthEstimation": {
        "depths": [1, 1, 1, 1],
        "hidden_sizes": FOUR,
        "num_attention_heads": [1, 2, 4, 4],
        "decoder_hidden_size": 16,
    },
    "UperNetForSemanticSegmentation": {
        "backbone_config": RESNET_STAGES,
        "hidden_size": 16,
        "auxiliary_in_channels": 32,
        "auxiliary_channels": 16,
    },
    "BeitForSemanticSegmentation": {"num_hidden_layers": 4, "out_indices": [0, 1, 2, 3], "pool_scales": [1, 2]},
    "DetrForObjectDetection": {"backbone_config": RESNET_STAGES, "use_timm_backbone": False, "num_queries": 5},
    "YolosForObjectDetection": {"num_detection_tokens": 5, "image_size": [64, 64]},
}
