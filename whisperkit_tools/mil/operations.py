"""Types of operations by the kind of work that they do: the one list of their names, readable without torch."""

from enum import Enum


class Work(Enum):
    """A kind of work."""

    PRODUCT = "multiplies and adds"
    ELEMENTWISE = "computes each element of the result from the elements at its place"
    REDUCTION = "computes an element of the result from all elements along some axes"
    NORMALIZATION = "computes each element of the result from all elements along some axes"
    POOLING = "computes an element of the result from a window"
    MOVEMENT = "moves, selects or orders elements, or makes them without computing"


_TYPES = {
    Work.PRODUCT: "conv conv_transpose einsum linear matmul scaled_dot_product_attention",
    Work.ELEMENTWISE: (
        "abs acos add asin atan atanh cast ceil clamped_relu clip cos cosh cumsum dequantize elu equal erf exp exp2 "
        "floor floor_div gelu greater greater_equal inverse leaky_relu less less_equal linear_activation log "
        "logical_and logical_not logical_or logical_xor maximum minimum mod mul not_equal pow prelu quantize real_div "
        "relu relu6 round rsqrt scaled_tanh select sigmoid sigmoid_hard sign silu sin sinh softplus "
        "softplus_parametric softsign sqrt square sub tan tanh threshold thresholded_relu"
    ),
    Work.REDUCTION: (
        "reduce_argmax reduce_argmin reduce_l1_norm reduce_l2_norm reduce_log_sum reduce_log_sum_exp reduce_max "
        "reduce_mean reduce_min reduce_prod reduce_sum reduce_sum_square"
    ),
    Work.NORMALIZATION: "batch_norm instance_norm l2_norm layer_norm softmax",
    Work.POOLING: "avg_pool l2_pool max_pool",
    Work.MOVEMENT: (
        "argsort band_part concat coreml_update_state crop depth_to_space expand_dims fill fill_like flatten2d gather "
        "gather_along_axis gather_nd identity non_zero one_hot pad pixel_shuffle pixel_unshuffle range_1d read_state "
        "reshape reshape_like reverse scatter scatter_along_axis scatter_nd shape slice_by_index slice_by_size "
        "slice_update sliding_windows space_to_depth split squeeze stack tile topk transpose "
        "upsample_nearest_neighbor write_state"
    ),
}
_WORK = {name: work for work, names in _TYPES.items() for name in names.split()}


def work_of(operation_type: str) -> Work | None:
    """Return the kind of work that operations of a type do, None where it is not known."""
    return _WORK.get(operation_type)
