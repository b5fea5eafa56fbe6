"""The backward pass of `run_flow` in the same form: all layers in one launch, from what the forward pass saved.

The kernel takes gradients back through the layers and leaves, for every matrix product, the gradient of its result.
The gradients of the weights are products of those with the saved inputs, over all rows: large ordinary matrix
products, without atomic additions, so that equal rows give equal bits.
"""

import triton
import triton.language as tl

from sbi_physics.models.flows.fused.kernels import affine, find_bin, product, slope_at
from sbi_physics.models.flows.spline import MIN_BIN, UNIT_DERIVATIVE

__all__ = ["run_gradients"]

_MIN_BIN = tl.constexpr(MIN_BIN)
_UNIT_DERIVATIVE = tl.constexpr(UNIT_DERIVATIVE)


@triton.jit
def _transposed(rows, weights, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr):
    """Rows ``(n, COLUMNS)`` times the transpose of the matrix ``(ROWS, COLUMNS)`` at `weights`."""
    matrix = tl.load(weights + tl.arange(0, COLUMNS)[:, None] + tl.arange(0, ROWS)[None, :] * COLUMNS)
    return product(rows, matrix, PRECISION)


@triton.jit
def _silu_slope(x):
    gate = tl.sigmoid(x)
    return gate * (1 + x * (1 - gate))


@triton.jit
def _sizes_gradient(edge, size, shares, index, BINS: tl.constexpr, TAIL: tl.constexpr):
    """From gradients in the edge and size of a bin ``(n, GROUP)`` to unconstrained numbers ``(n, GROUP, bins)``."""
    bin_ = tl.arange(0, shares.shape[2])[None, None, :]
    # An edge is the sum of all sizes before it.
    own = tl.where(bin_ == index[:, :, None], size[:, :, None], 0.0)
    weighted = tl.where(bin_ < index[:, :, None], edge[:, :, None], own) * shares
    scale: tl.constexpr = 2 * TAIL * (1 - _MIN_BIN * BINS)
    return scale * (weighted - shares * tl.sum(weighted, axis=2)[:, :, None])


@triton.jit
def _spline_gradient(x, widths, heights, derivatives, grad_y, grad_l, BINS: tl.constexpr, TAIL: tl.constexpr):
    """Gradients with respect to `x` ``(n, GROUP)`` and the unconstrained parameters ``(n, GROUP, bins)``.

    The partial derivatives are those of `sbi_physics.models.flows.spline`.
    """
    left, _, width, height, raw0, raw1, index, width_shares, height_shares = find_bin(
        x, widths, heights, derivatives, BINS, TAIL, False
    )
    inside = tl.abs(x) <= TAIL
    inner_y, inner_l = tl.where(inside, grad_y, 0.0), tl.where(inside, grad_l, 0.0)
    d0, d1 = slope_at(raw0), slope_at(raw1)
    slope = height / width
    curvature = d0 + d1 - 2 * slope
    clamped = tl.clamp(x, -TAIL, TAIL, propagate_nan=tl.PropagateNan.ALL)
    xi = tl.clamp((clamped - left) / width, 0.0, 1.0, propagate_nan=tl.PropagateNan.ALL)
    rest = 1 - xi
    mixed, gap = xi * rest, rest - xi
    inverse_d = 1 / (slope + curvature * mixed)
    numerator = d1 * xi * xi + 2 * slope * mixed + d0 * rest * rest
    inverse_n = 1 / numerator
    level = (slope * xi * xi + d0 * mixed) * inverse_d
    scaled = height * inverse_d
    common = 2 * mixed * inverse_d
    l_xi = 2 * ((d1 * xi + slope * gap - d0 * rest) * inverse_n - curvature * gap * inverse_d)
    l_slope = 2 * (1 / slope + mixed * inverse_n - (1 - 2 * mixed) * inverse_d)
    grad_xi = (inner_y * scaled * inverse_d * slope * numerator + inner_l * l_xi) / width
    grad_slope = (inner_y * scaled * (xi * xi - level * (1 - 2 * mixed)) + inner_l * l_slope) / width
    grad_d0 = inner_y * scaled * mixed * (1 - level) + inner_l * (rest * rest * inverse_n - common)
    grad_d1 = -inner_y * scaled * mixed * level + inner_l * (xi * xi * inverse_n - common)
    grad_width, grad_height = -grad_xi * xi - grad_slope * slope, inner_y * level + grad_slope
    grad_widths = _sizes_gradient(-grad_xi, grad_width, width_shares, index, BINS, TAIL)
    grad_heights = _sizes_gradient(inner_y, grad_height, height_shares, index, BINS, TAIL)
    bin_ = tl.arange(0, widths.shape[2])[None, None, :]
    grad_d0 *= tl.sigmoid(raw0 + _UNIT_DERIVATIVE)
    grad_d1 *= tl.sigmoid(raw1 + _UNIT_DERIVATIVE)
    grad_derivatives = tl.where(bin_ + 1 == index[:, :, None], grad_d0[:, :, None], 0.0)
    right = (bin_ == index[:, :, None]) & (bin_ < BINS - 1)
    grad_derivatives = tl.where(right, grad_d1[:, :, None], grad_derivatives)
    return tl.where(inside, grad_xi, grad_y), grad_widths, grad_heights, grad_derivatives


@triton.jit
def _move_gradient(
    rows,
    hidden,
    grad_rows,
    grad_ladj,
    weights,
    grad_final,
    present,
    FEATURES: tl.constexpr,
    KEPT: tl.constexpr,
    OFFSET: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    HIDDEN: tl.constexpr,
    BINS: tl.constexpr,
    PADDED_BINS: tl.constexpr,
    TAIL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Back through the moved dimensions: gradients of the rows and of the last hidden units."""
    TILE: tl.constexpr = rows.shape[0]
    COLUMNS: tl.constexpr = GROUP * PADDED_BINS
    SLAB: tl.constexpr = HIDDEN * COLUMNS + COLUMNS
    slices = tl.arange(0, WIDTH // GROUP)[None, :, None]
    member = tl.arange(0, GROUP)[None, :]
    columns = tl.arange(0, COLUMNS)[None, :]
    grad_hidden = tl.zeros([TILE, HIDDEN], tl.float32)
    sliced = tl.reshape(rows, [TILE, WIDTH // GROUP, GROUP])
    for group in range((FEATURES - KEPT + GROUP - 1) // GROUP):
        widths = affine(hidden, weights, HIDDEN, COLUMNS, PRECISION)
        heights = affine(hidden, weights + SLAB, HIDDEN, COLUMNS, PRECISION)
        derivatives = affine(hidden, weights + 2 * SLAB, HIDDEN, COLUMNS, PRECISION)
        here = slices == OFFSET // GROUP + group
        real = group * GROUP + member < FEATURES - KEPT
        grad_sliced = tl.reshape(grad_rows, [TILE, WIDTH // GROUP, GROUP])
        grad_x, grad_widths, grad_heights, grad_derivatives = _spline_gradient(
            tl.sum(tl.where(here, sliced, 0.0), axis=1),
            tl.reshape(widths, [TILE, GROUP, PADDED_BINS]),
            tl.reshape(heights, [TILE, GROUP, PADDED_BINS]),
            tl.reshape(derivatives, [TILE, GROUP, PADDED_BINS]),
            tl.sum(tl.where(here, grad_sliced, 0.0), axis=1),
            tl.where(real, grad_ladj[:, None], 0.0),
            BINS,
            TAIL,
        )
        grad_rows = tl.reshape(tl.where(here, grad_x[:, None, :], grad_sliced), [TILE, WIDTH])
        grad_widths = tl.reshape(grad_widths, [TILE, COLUMNS])
        grad_heights = tl.reshape(grad_heights, [TILE, COLUMNS])
        grad_derivatives = tl.reshape(grad_derivatives, [TILE, COLUMNS])
        tl.store(grad_final + columns, grad_widths, mask=present)
        tl.store(grad_final + COLUMNS + columns, grad_heights, mask=present)
        tl.store(grad_final + 2 * COLUMNS + columns, grad_derivatives, mask=present)
        grad_hidden += _transposed(grad_widths, weights, HIDDEN, COLUMNS, PRECISION)
        grad_hidden += _transposed(grad_heights, weights + SLAB, HIDDEN, COLUMNS, PRECISION)
        grad_hidden += _transposed(grad_derivatives, weights + 2 * SLAB, HIDDEN, COLUMNS, PRECISION)
        weights += 3 * SLAB
        grad_final += 3 * COLUMNS
    return grad_rows, grad_hidden


@triton.jit
def _condition_gradient(
    grad_hidden,
    projected,
    grad_projected,
    inner,
    saved,
    grad_inner,
    plane,
    present,
    HIDDEN: tl.constexpr,
    BLOCKS: tl.constexpr,
    GATED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Back through the blocks: the gradient of the first hidden units."""
    MATRIX: tl.constexpr = HIDDEN * HIDDEN + HIDDEN
    unit = tl.arange(0, HIDDEN)[None, :]
    for step in range(BLOCKS):
        block = BLOCKS - 1 - step
        change = grad_hidden
        if GATED:
            gate = tl.sigmoid(tl.load(projected + (block + 1) * HIDDEN + unit))
            last = tl.load(saved + (3 * block + 2) * plane + unit, mask=present, other=0.0)
            grad_logit = grad_hidden * last * gate * (1 - gate)
            tl.store(grad_projected + (block + 1) * HIDDEN + unit, grad_logit, mask=present)
            change = grad_hidden * gate
        tl.store(grad_inner + (2 * block + 1) * plane + unit, change, mask=present)
        between = tl.load(saved + (3 * block + 1) * plane + unit, mask=present, other=0.0)
        change = _transposed(change, inner + (2 * block + 1) * MATRIX, HIDDEN, HIDDEN, PRECISION)
        change *= _silu_slope(between)
        tl.store(grad_inner + 2 * block * plane + unit, change, mask=present)
        before = tl.load(saved + 3 * block * plane + unit, mask=present, other=0.0)
        change = _transposed(change, inner + 2 * block * MATRIX, HIDDEN, HIDDEN, PRECISION)
        grad_hidden += change * _silu_slope(before)
    tl.store(grad_projected + unit, grad_hidden, mask=present)
    return grad_hidden


@triton.jit
def run_gradients(
    grad_noise,
    grad_ladj,
    grad_inputs,
    grad_projected,
    grad_states,
    grad_inner,
    grad_final,
    projected,
    mixes,
    weights,
    states,
    saved,
    count,
    context_stride,
    FEATURES: tl.constexpr,
    KEPT: tl.constexpr,
    OFFSET: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCKS: tl.constexpr,
    BINS: tl.constexpr,
    PADDED_BINS: tl.constexpr,
    LAYERS: tl.constexpr,
    TAIL: tl.constexpr,
    LAYER_WEIGHTS: tl.constexpr,
    GATED: tl.constexpr,
    SHARED_CONTEXT: tl.constexpr,
    PRECISION: tl.constexpr,
    MIX_PRECISION: tl.constexpr,
    TILE: tl.constexpr,
):
    """Gradients for the direction from data to noise; arguments as in `run_flow`.

    Args:
        grad_noise: ``(count, FEATURES)``.
        grad_ladj: ``(count,)``.
        grad_inputs: ``(count, FEATURES)``, written.
        grad_projected: ``(count, LAYERS, 1 + BLOCKS, HIDDEN)``, written.
        grad_states: ``(LAYERS, count, WIDTH)``, of the rows after each linear map, written.
        grad_inner: ``(LAYERS, 2 BLOCKS, count, HIDDEN)``, of the products in the blocks, written.
        grad_final: ``(LAYERS, count, groups, 3, GROUP * PADDED_BINS)``, of the unconstrained parameters, written.
        projected: as in `run_flow`.
        mixes: as in `run_flow`.
        weights: as in `run_flow`.
        states: as saved by `run_flow`.
        saved: as saved by `run_flow`.
        count: rows.
        context_stride: from one row of `projected` to the next.
    """
    FINAL: tl.constexpr = (FEATURES - KEPT + GROUP - 1) // GROUP * 3 * GROUP * PADDED_BINS
    row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    rows = row[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    unit = tl.arange(0, HIDDEN)[None, :]
    feature = tl.where(column < OFFSET, column, column - OFFSET + KEPT)
    real = (column < KEPT) | ((column >= OFFSET) & (column < OFFSET + FEATURES - KEPT))
    present = rows < count
    plane = tl.zeros([TILE, 1], tl.int64) + count
    if SHARED_CONTEXT:
        context = projected + tl.zeros([1, 1], tl.int64)
    else:
        context = projected + tl.minimum(rows, count - 1) * context_stride
    grad_rows = tl.load(grad_noise + rows * FEATURES + feature, mask=present & real, other=0.0)
    grad_total = tl.load(grad_ladj + row, mask=row < count, other=0.0)
    for step in range(LAYERS):
        layer = LAYERS - 1 - step
        own = weights + layer * LAYER_WEIGHTS
        inner = own + WIDTH * HIDDEN
        own_saved = saved + (layer * (3 * BLOCKS + 1) * plane + rows) * HIDDEN
        grad_rows, grad_hidden = _move_gradient(
            tl.load(states + ((2 * layer + 1) * plane + rows) * WIDTH + column, mask=present, other=0.0),
            tl.load(own_saved + 3 * BLOCKS * plane * HIDDEN + unit, mask=present, other=0.0),
            grad_rows,
            grad_total,
            inner + 2 * BLOCKS * (HIDDEN * HIDDEN + HIDDEN),
            grad_final + (layer * plane + rows) * FINAL,
            present,
            FEATURES,
            KEPT,
            OFFSET,
            WIDTH,
            GROUP,
            HIDDEN,
            BINS,
            PADDED_BINS,
            TAIL,
            PRECISION,
        )
        grad_hidden = _condition_gradient(
            grad_hidden,
            context + layer * (1 + BLOCKS) * HIDDEN,
            grad_projected + (rows * LAYERS + layer) * (1 + BLOCKS) * HIDDEN,
            inner,
            own_saved,
            grad_inner + (layer * 2 * BLOCKS * plane + rows) * HIDDEN,
            plane * HIDDEN,
            present,
            HIDDEN,
            BLOCKS,
            GATED,
            PRECISION,
        )
        if KEPT > 0:
            seen = _transposed(grad_hidden, own, WIDTH, HIDDEN, PRECISION)
            grad_rows += tl.where(column < KEPT, seen, 0.0)
        tl.store(grad_states + (layer * plane + rows) * WIDTH + column, grad_rows, mask=present)
        if FEATURES > 1:
            grad_rows = _transposed(grad_rows, mixes + layer * (WIDTH + 1) * WIDTH, WIDTH, WIDTH, MIX_PRECISION)
    tl.store(grad_inputs + rows * FEATURES + feature, grad_rows, mask=present & real)
