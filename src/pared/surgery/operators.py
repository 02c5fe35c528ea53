"""The ATen operators that need no rule of their own, by what they do to the entries of a tensor."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Operators that act on every entry alone. Their constants are found by running them.
POINTWISE = _names(
    """
    add sub rsub mul div true_divide pow maximum minimum fmax fmin where relu relu6 leaky_relu elu selu celu
    gelu silu mish hardswish hardsigmoid hardtanh sigmoid tanh softplus softshrink hardshrink log_sigmoid
    threshold exp exp2 log log1p log2 expm1 sqrt rsqrt neg abs sin cos tan atan erf erfc clamp clamp_min
    clamp_max clip square reciprocal sign floor ceil round trunc eq ne lt le gt ge logical_not logical_and
    logical_or bitwise_and bitwise_or bitwise_not __and__ __or__ masked_fill lerp addcmul addcdiv nan_to_num
    isnan isinf fill rrelu
    """
)

#: Operators that give back what they take, in evaluation.
SAME = _names(
    """
    to _to_copy clone contiguous alias detach detach_ dropout feature_dropout alpha_dropout native_dropout
    lift_fresh_copy lift_fresh type_as zeros_like ones_like full_like empty_like rand_like randn_like float
    double half bfloat16 requires_grad_ resolve_conj resolve_neg
    """
)

#: Operators that make a tensor of a size given by numbers.
MADE = _names(
    """
    zeros ones full empty arange linspace rand randn eye scalar_tensor new_zeros new_ones new_full new_empty
    tensor
    """
)

#: Operators that act on the entries of their first argument alone, or move them, and leave zero zero.
FIXES_ZERO = _names(
    """
    relu leaky_relu elu selu celu gelu silu mish hardswish tanh sin tan atan erf expm1 log1p neg abs square sign floor
    ceil round trunc to _to_copy clone contiguous alias detach dropout feature_dropout native_dropout float double half
    bfloat16 view reshape _unsafe_view flatten unflatten permute transpose t squeeze unsqueeze split split_with_sizes
    chunk slice select unbind avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d mean sum amax amin expand movedim unbind repeat
    pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle
    """
)

#: Layers that multiply by a weight and add a bias.
WEIGHTED = _names("linear addmm conv1d conv2d conv3d")

#: Operators that move entries about, and leave them as they are.
MOVES = _names(
    """
    view reshape _unsafe_view flatten unflatten permute transpose t squeeze unsqueeze expand split split_with_sizes chunk
    slice narrow select cat concat
    """
)

#: Operators that take averages over places: a factor of a channel goes through them.
AVERAGES = _names(
    """
    avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d mean upsample_nearest1d
    upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d
    """
)

#: Operators that a positive factor of a channel goes through.
POSITIVE = _names("relu leaky_relu max_pool1d max_pool2d max_pool3d adaptive_max_pool2d")
