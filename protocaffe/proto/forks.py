"""What forks of Caffe added that is known here but not built: layer types and fields, by fork."""

from __future__ import annotations

SSD = "SSD's fork of Caffe"
RFCN = "R-FCN's fork of Caffe"
DEEPLAB = "DeepLab's fork of Caffe"
SEGNET = "SegNet's fork of Caffe"
TSN = "TSN's fork of Caffe"
FLOWNET = "FlowNet's fork of Caffe"
FACE = "caffe-face"
OPENPOSE = "OpenPose's fork of Caffe"
YOLO = "MobileNet-YOLO's fork of Caffe"
INTEL = "Intel's Caffe"
NVIDIA = "NVIDIA's Caffe"

_TYPES = {
    SSD: "AnnotatedData DetectionEvaluate MultiBoxLoss VideoData",
    RFCN: "BoxAnnotatorOHEM SmoothL1LossOHEM SoftmaxWithLossOHEM",
    DEEPLAB: "AdaptiveBiasChannel BiasChannel DenseCRF DomainTransform ImageSegData MatRead "
    "MatWrite SegAccuracy UniqueLabel",
    SEGNET: "DenseImageData",
    TSN: "BatchReduction Gather Scatter SegData",
    FLOWNET: "Accum BlackAugmentation ChannelNorm Correlation CustomData DataAugmentation "
    "Downsample FLOWriter FlowAugmentation FlowWarp GenerateAugmentationParameters ImgReader "
    "ImgWriter L1Loss LpqLoss Mean NegReLU Resample",
    FACE: "CenterLoss",
    OPENPOSE: "OPData OPVideo",
    YOLO: "RegionLoss SegmentationEvaluate YoloDetectionOutput YoloSeg Yolov3 "
    "Yolov3DetectionOutput",
    INTEL: "BoxData EvalDetection MKLBatchNorm MnActivation SpatialDropout",
    NVIDIA: "DetectNetTransformation TRT",
}
_FIELDS = {
    ("LayerParameter", SSD): "annotated_data_param detection_evaluate_param multibox_loss_param "
    "video_data_param",
    ("LayerParameter", RFCN): "box_annotator_ohem_param",
    ("LayerParameter", DEEPLAB): "adaptive_bias_channel_param bias_channel_param dense_crf_param "
    "domain_transform_param mat_read_param mat_write_param seg_accuracy_param unique_label_param",
    ("LayerParameter", SEGNET): "dense_image_data_param",
    ("LayerParameter", TSN): "batch_reduction_param seg_data_param",
    ("LayerParameter", FLOWNET): "accum_param augmentation_param black_augmentation_param "
    "coeff_schedule_param correlation_param downsample_param flow_warp_param l1_loss_param "
    "lpq_loss_param mean_param reader_param resample_param reshape_every_iter writer_param",
    ("LayerParameter", FACE): "center_loss_param",
    ("LayerParameter", OPENPOSE): "op_transform_param",
    ("LayerParameter", YOLO): "region_loss_param segmentation_evaluate_param "
    "yolo_detection_output_param yolo_seg_param yolov3_detection_output_param yolov3_param",
    ("LayerParameter", INTEL): "mn_activation_param mn_grad_compress_param multinode "
    "quantization_param spatial_dropout_param split_param",
    ("LayerParameter", NVIDIA): "detectnet_augmentation_param detectnet_groundtruth_param "
    "trt_param",
    ("NetParameter", INTEL): "bn_stats_batch_size compile_net_state multinode",
    ("SolverParameter", SSD): "ap_version eval_type plateau_winsize show_per_class_result",
    ("SolverParameter", NVIDIA): "local_gw_ratio local_lr_auto min_lr rampup_interval rampup_lr",
    ("TransformationParameter", SSD): "crop_h crop_w distort_param emit_constraint expand_param "
    "noise_param resize_param",
    ("TransformationParameter", NVIDIA): "allow_upscale img_rand_resize_lower "
    "img_rand_resize_upper interpolation_algo_down interpolation_algo_up rand_resize_ratio_lower "
    "rand_resize_ratio_upper random_seed vertical_stretch_lower vertical_stretch_upper",
    ("TransformationParameter", DEEPLAB): "crop_height crop_width scale_factors",
    ("TransformationParameter", TSN): "fix_crop is_flow more_fix_crop multi_scale scale_ratios",
    ("LossParameter", SEGNET): "class_weighting weight_by_label_freqs",
    ("LossParameter", RFCN): "pre_fixed_normalizer",
    ("LossParameter", NVIDIA): "label_smoothing",
    ("BatchNormParameter", INTEL): "bias_term filler relu stats_batch_size use_weight_bias",
    ("ConvolutionParameter", INTEL): "negative_slope relu",
    ("ConvolutionParameter", OPENPOSE): "binary",
    ("ImageDataParameter", DEEPLAB): "ignore_label label_type",
    ("PoolingParameter", NVIDIA): "torch_pooling",
}

FORK_TYPES = {name: fork for fork, names in _TYPES.items() for name in names.split()}
"""Layer types that are not built, and where they come from."""

FORK_FIELDS = {
    (message, name): fork for (message, fork), names in _FIELDS.items() for name in names.split()
}
"""The same for fields, by message and name."""
