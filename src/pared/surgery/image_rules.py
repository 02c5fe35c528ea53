"""How operators on images and operators along an axis tie axes: padding, pooling, upsampling, reductions, softmax."""

from pared.surgery.axes import Dim, freeze, split
from pared.surgery.rules import Dims, Tracer, broadcast, many, refuse, rule, spatial
from pared.surgery.trace import Step


@rule("pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d")
def _pad(tracer: Tracer, step: Step) -> Dims:
    dims = list(step["self"].dims)
    amounts = step.get("pad", step.get("padding"))
    for back in range(len(amounts) // 2):
        if amounts[2 * back] or amounts[2 * back + 1]:
            place = len(dims) - 1 - back
            freeze(dims[place], f"{step.where()} pads it")
            dims[place] = spatial([step.shapes[place]])[0]
    return tuple(dims)


@rule("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d", "upsample_bilinear2d")
@rule("upsample_bicubic2d", "upsample_trilinear3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
@rule("avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d", "_adaptive_avg_pool2d")
@rule("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "lp_pool2d", "max_pool2d_with_indices")
@rule("mkldnn_adaptive_avg_pool2d", "max_pool1d_with_indices", "max_pool3d_with_indices")
def _image(tracer: Tracer, step: Step) -> Dims | list[Dims]:
    dims = step.values()[0].dims
    several = isinstance(step.shapes, list)
    shape = step.shapes[0] if several else step.shapes
    # Whether the first axis is a batch is told by the operator's name: an image has so many axes and its channels.
    places = next(int(c) for c in reversed(step.op) if c.isdigit())
    out = (*dims[:-places], *spatial(shape[-places:]))
    for dim in dims[-places:]:
        freeze(dim, "its entries are places of an image or a sequence")
    return [out for _ in step.shapes] if several else out


@rule("pixel_shuffle")
def _pixel_shuffle(tracer: Tracer, step: Step) -> Dims:
    *batch, channels, _, _ = step["self"].dims
    factor = step["upscale_factor"] ** 2
    halves = split(channels, channels.size // factor)
    if halves is None:
        return refuse(step)
    freeze(halves[1], "its entries become places of an image")
    return (*batch, halves[0], *spatial(step.shapes[-2:]))


@rule("mean", "sum", "amax", "amin", "var", "std", "var_mean", "std_mean", "norm", "linalg_vector_norm", "logsumexp")
@rule("prod", "max", "min", "argmax", "argmin", "any", "all", "median", "nanmean")
def _reduce(tracer: Tracer, step: Step) -> Dims | list[Dims]:
    dims = step["self"].dims
    if len(step.values()) > 1:  # torch.max(a, b)
        return broadcast([value.dims for value in step.values()], step.shapes)
    places = step.get("dim")
    over = {place % len(dims) for place in many(places)} if places not in (None, []) else set(range(len(dims)))
    for place in () if tracer.shares(step) else over:
        freeze(dims[place], f"{step.where()} takes the {step.op} over it")
    keep = bool(step.get("keepdim", False))
    out = tuple(Dim(1) if place in over else dim for place, dim in enumerate(dims) if keep or place not in over)
    return [out for _ in step.shapes] if isinstance(step.shapes, list) else out


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "cumprod", "logcumsumexp", "sort", "tril", "triu")
def _along(tracer: Tracer, step: Step) -> Dims | list[Dims]:
    dims = step["self"].dims
    for place in (-2, -1) if step.op in ("tril", "triu") else (step.get("dim", -1),):
        freeze(dims[place], f"{step.where()} takes the {step.op.strip('_')} over it")
    return [dims for _ in step.shapes] if isinstance(step.shapes, list) else dims
