/* A spline coupling flow on a CPU: value, gradient and inverse of all layers in one pass over the rows.
 *
 * Rows are taken in tiles of ROWS; inside a tile a feature is ROWS numbers in a row (feature-major), so that matrix
 * products, activations and splines all work on whole vectors and stay in the cache.  The layers are those of
 * `sbi_physics.models.flows`: y = M x + b (LU map and permutation folded into one matrix), a residual conditioner with
 * gated context on the kept half, and rational-quadratic splines on the rest.
 *
 * The shape comes from the command line: FEATURES, CONTEXT, HIDDEN, BLOCKS, BINS, LAYERS (macros) and TAIL.
 */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "lanes.h"

#define STRIP (LANES > 8 ? 8 : 4)
#define VECTORS 2
#define ROWS (VECTORS * LANES)

#define KEPT (FEATURES / 2)
#define MOVED (FEATURES - KEPT)
#define SEEN (KEPT > 0 ? KEPT : 1)
#define EACH (3 * BINS - 1)
#define OUT (MOVED * EACH)
#define MIN_BIN 1e-3f
#define MIN_DERIVATIVE 1e-3f
#define UNIT_DERIVATIVE 0.539742417f

typedef vec feature[VECTORS];
typedef vec loose __attribute__((aligned(4)));

/* ---- elementary functions on vectors --------------------------------------------------------------------------- */

static inline vec vsqrt(vec x) {
    vec root;
    for (int i = 0; i < LANES; i++) root[i] = __builtin_sqrtf(x[i]);
    return root;
}

static inline vec sigmoid(vec x) { return 1.0f / (1.0f + vexp(-x)); }
static inline vec softplus(vec x) { return larger(x, all(0.0f)) + vlog(1.0f + vexp(-larger(x, -x))); }

/* ---- matrix products ------------------------------------------------------------------------------------------- */

/* out[o] = (keep ? out[o] : bias[o]) + sum_i weight[o * step_out + i * step_in] * in[i] */
static inline __attribute__((always_inline)) void product(
    feature *out, int outs, int step_out, const feature *in, int ins, int step_in, const float *weight,
    const float *bias, int keep) {
    int o = 0;
    for (; o + STRIP <= outs; o += STRIP) {
        vec sum[STRIP][VECTORS];
        for (int s = 0; s < STRIP; s++)
            for (int v = 0; v < VECTORS; v++) sum[s][v] = keep ? out[o + s][v] : all(bias ? bias[o + s] : 0.0f);
        const float *w = weight + (ptrdiff_t)o * step_out;
        for (int i = 0; i < ins; i++)
            for (int s = 0; s < STRIP; s++)
                for (int v = 0; v < VECTORS; v++) sum[s][v] += w[s * step_out + i * step_in] * in[i][v];
        for (int s = 0; s < STRIP; s++)
            for (int v = 0; v < VECTORS; v++) out[o + s][v] = sum[s][v];
    }
    for (; o < outs; o++) {
        vec sum[VECTORS];
        for (int v = 0; v < VECTORS; v++) sum[v] = keep ? out[o][v] : all(bias ? bias[o] : 0.0f);
        for (int i = 0; i < ins; i++)
            for (int v = 0; v < VECTORS; v++) sum[v] += weight[o * step_out + i * step_in] * in[i][v];
        for (int v = 0; v < VECTORS; v++) out[o][v] = sum[v];
    }
}

/* Rows of a tile one after the other, columns padded with zeros to a multiple of LANES. */
static inline __attribute__((always_inline)) void transpose(float *out, const feature *in, int count, int padded) {
    for (int r = 0; r < ROWS; r++)
        for (int i = count; i < padded; i++) out[r * padded + i] = 0.0f;
    for (int i = 0; i < count; i++) {
        const float *column = (const float *)in[i];
        for (int r = 0; r < ROWS; r++) out[r * padded + i] = column[r];
    }
}

#define PADDED(count) (((count) + LANES - 1) / LANES * LANES)

/* `height` outputs by `blocks` vectors of inputs; both are constants where this is inlined, so the sums are registers. */
static inline __attribute__((always_inline)) void gather_part(
    float *weight, int step, const feature *out, const float *rows, int padded, int width, int height, int blocks) {
    vec sum[8][4];
    for (int s = 0; s < height; s++)
        for (int b = 0; b < blocks; b++) sum[s][b] = all(0.0f);
    for (int r = 0; r < ROWS; r++)
        for (int s = 0; s < height; s++)
            for (int b = 0; b < blocks; b++)
                sum[s][b] += ((const float *)out[s])[r] * *(const loose *)(rows + r * padded + b * LANES);
    for (int s = 0; s < height; s++)
        for (int b = 0; b < blocks; b++) {
            float *target = weight + s * step + b * LANES;
            if (width >= (b + 1) * LANES)
                *(loose *)target += sum[s][b];
            else
                for (int i = 0; i < width - b * LANES; i++) target[i] += sum[s][b][i];
        }
}

#define GATHER(height, blocks)                                                                                        \
    for (; o + height <= outs; o += height)                                                                           \
    gather_part(weight + (ptrdiff_t)o * step + begin, step, out + o, rows + begin, padded, ins - begin, height, blocks)

/* weight[o * step + i] += sum_r out[o][r] * rows[r][i];  bias[o] += sum_r out[o][r] */
static inline __attribute__((always_inline)) void gather_gradient(
    float *weight, int step, float *bias, const feature *out, int outs, const float *rows, int ins) {
    const int padded = PADDED(ins);
    for (int begin = 0; begin < padded; begin += 4 * LANES) {
        int o = 0;
        switch ((padded - begin) / LANES) {
        case 1: GATHER(8, 1); GATHER(1, 1); break;
        case 2: GATHER(6, 2); GATHER(1, 2); break;
        case 3: GATHER(4, 3); GATHER(1, 3); break;
        default: GATHER(4, 4); GATHER(1, 4);
        }
    }
    if (bias)
        for (int o = 0; o < outs; o++) {
            vec sum = out[o][0];
            for (int v = 1; v < VECTORS; v++) sum += out[o][v];
            float *part = (float *)&sum;
            for (int width = LANES / 2; width; width /= 2)
                for (int i = 0; i < width; i++) part[i] += part[i + width];
            bias[o] += part[0];
        }
}

/* ---- rational-quadratic splines (Durkan et al. 2019, arXiv:1906.04032) ----------------------------------------- */

typedef struct {
    vec left, width, bottom, height, raw0, raw1, d0, d1;
    ivec after[BINS + 1]; /* after[k]: the position is at or beyond the left edge of bin k */
    vec share[2][BINS];
} bin_t;

static inline void find_bin(bin_t *bin, const vec *parameters, vec position, int inverse) {
    const float scale = 2 * TAIL * (1 - MIN_BIN * BINS), least = 2 * TAIL * MIN_BIN;
    for (int axis = 0; axis < 2; axis++) {
        const vec *raw = parameters + axis * BINS;
        vec most = raw[0], total = all(0.0f);
        for (int k = 1; k < BINS; k++) most = larger(most, raw[k]);
        for (int k = 0; k < BINS; k++) total += bin->share[axis][k] = vexp(raw[k] - most);
        total = 1.0f / total;
        for (int k = 0; k < BINS; k++) bin->share[axis][k] *= total;
    }
    vec x = all(-TAIL), y = all(-TAIL);
    bin->after[0] = (ivec){0} - 1;
    bin->after[BINS] = (ivec){0};
    for (int k = 0; k < BINS; k++) {
        const vec w = bin->share[0][k] * scale + least, h = bin->share[1][k] * scale + least;
        const vec raw0 = k ? parameters[2 * BINS + k - 1] : all(0.0f);
        const vec raw1 = k < BINS - 1 ? parameters[2 * BINS + k] : all(0.0f);
        if (k == 0) {
            bin->left = x, bin->width = w, bin->bottom = y, bin->height = h, bin->raw0 = raw0, bin->raw1 = raw1;
        } else {
            const ivec here = bin->after[k] = position >= (inverse ? y : x);
            bin->left = choose(here, x, bin->left), bin->width = choose(here, w, bin->width);
            bin->bottom = choose(here, y, bin->bottom), bin->height = choose(here, h, bin->height);
            bin->raw0 = choose(here, raw0, bin->raw0), bin->raw1 = choose(here, raw1, bin->raw1);
        }
        x += w, y += h;
    }
    bin->d0 = softplus(bin->raw0 + UNIT_DERIVATIVE) + MIN_DERIVATIVE;
    bin->d1 = softplus(bin->raw1 + UNIT_DERIVATIVE) + MIN_DERIVATIVE;
}

static inline vec clamp(vec x, float low, float high) { return smaller(larger(x, all(low)), all(high)); }

static inline vec log_derivative(const bin_t *bin, vec xi) {
    const vec slope = bin->height / bin->width, rest = 1.0f - xi, mixed = xi * rest;
    const vec numerator = bin->d1 * xi * xi + 2.0f * slope * mixed + bin->d0 * rest * rest;
    const vec denominator = slope + (bin->d0 + bin->d1 - 2.0f * slope) * mixed;
    return vlog(slope * slope * numerator / (denominator * denominator));
}

static inline vec spline(const vec *parameters, vec x, vec *log_d) {
    bin_t bin;
    const vec clamped = clamp(x, -TAIL, TAIL);
    find_bin(&bin, parameters, clamped, 0);
    const vec slope = bin.height / bin.width, xi = clamp((clamped - bin.left) / bin.width, 0, 1);
    const vec mixed = xi * (1.0f - xi);
    const vec y = bin.bottom + bin.height * (slope * xi * xi + bin.d0 * mixed)
                               / (slope + (bin.d0 + bin.d1 - 2.0f * slope) * mixed);
    const ivec inside = x == clamped;
    *log_d += choose(inside, log_derivative(&bin, xi), all(0.0f));
    return choose(inside, y, x);
}

static inline vec spline_inverse(const vec *parameters, vec y, vec *log_d) {
    bin_t bin;
    const vec clamped = clamp(y, -TAIL, TAIL);
    find_bin(&bin, parameters, clamped, 1);
    const vec slope = bin.height / bin.width, rise = larger(clamped - bin.bottom, all(0.0f));
    const vec bend = rise * (bin.d0 + bin.d1 - 2.0f * slope);
    const vec a = bin.height * (slope - bin.d0) + bend, b = bin.height * bin.d0 - bend, c = -slope * rise;
    const vec root = vsqrt(larger(b * b - 4.0f * a * c, all(1e-30f)));
    const vec xi = clamp(2.0f * c / (-b - root), 0, 1);
    const ivec inside = y == clamped;
    *log_d -= choose(inside, log_derivative(&bin, xi), all(0.0f));
    return choose(inside, bin.left + xi * bin.width, y);
}

/* From gradients in the output and in the log-derivative to those in the input (returned) and the parameters. */
static inline vec spline_gradient(vec *gradient, const vec *parameters, vec x, vec grad_y, vec grad_l) {
    const float scale = 2 * TAIL * (1 - MIN_BIN * BINS);
    bin_t bin;
    const vec clamped = clamp(x, -TAIL, TAIL), zero = all(0.0f);
    const ivec inside = x == clamped;
    find_bin(&bin, parameters, clamped, 0);
    const vec gy = choose(inside, grad_y, zero), gl = choose(inside, grad_l, zero);
    const vec d0 = bin.d0, d1 = bin.d1, slope = bin.height / bin.width;
    const vec xi = clamp((clamped - bin.left) / bin.width, 0, 1), rest = 1.0f - xi, mixed = xi * rest;
    const vec curvature = d0 + d1 - 2.0f * slope, over_d = 1.0f / (slope + curvature * mixed);
    const vec numerator = d1 * xi * xi + 2.0f * slope * mixed + d0 * rest * rest, over_n = 1.0f / numerator;
    const vec level = (slope * xi * xi + d0 * mixed) * over_d, scaled = bin.height * over_d;
    const vec common = 2.0f * mixed * over_d, gap = rest - xi;
    const vec y_xi = scaled * over_d * slope * numerator;
    const vec l_xi = 2.0f * ((d1 * xi + slope * gap - d0 * rest) * over_n - curvature * gap * over_d);
    const vec grad_xi = (gy * y_xi + gl * l_xi) / bin.width;
    const vec l_slope = 2.0f * (1.0f / slope + mixed * over_n - (1.0f - 2.0f * mixed) * over_d);
    const vec grad_slope = (gy * scaled * (xi * xi - level * (1.0f - 2.0f * mixed)) + gl * l_slope) / bin.width;
    const vec grad_width = -grad_xi * xi - grad_slope * slope, grad_height = gy * level + grad_slope;
    const vec grad_d0 = gy * scaled * mixed * (1.0f - level) + gl * (rest * rest * over_n - common);
    const vec grad_d1 = -gy * scaled * mixed * level + gl * (xi * xi * over_n - common);
    const vec grad_raw0 = grad_d0 * sigmoid(bin.raw0 + UNIT_DERIVATIVE);
    const vec grad_raw1 = grad_d1 * sigmoid(bin.raw1 + UNIT_DERIVATIVE);
    for (int axis = 0; axis < 2; axis++) {
        const vec edge = axis ? gy : -grad_xi, size = axis ? grad_height : grad_width;
        vec weighted[BINS], total = zero;
        for (int k = 0; k < BINS; k++) {
            /* The left edge of the bin is the sum of the sizes of all bins before it. */
            const vec each = choose(bin.after[k + 1], edge, choose(bin.after[k], size, zero));
            total += weighted[k] = each * bin.share[axis][k];
        }
        for (int k = 0; k < BINS; k++) gradient[axis * BINS + k] = scale * (weighted[k] - bin.share[axis][k] * total);
    }
    for (int k = 1; k < BINS; k++) {
        const ivec in_k = bin.after[k] & ~bin.after[k + 1], in_before = bin.after[k - 1] & ~bin.after[k];
        gradient[2 * BINS + k - 1] = choose(in_k, grad_raw0, choose(in_before, grad_raw1, zero));
    }
    return choose(inside, grad_xi, grad_y);
}

/* ---- layers ---------------------------------------------------------------------------------------------------- */

/* The parameters of a layer, or their gradients, in the order in which they come from outside. */
typedef struct {
#if FEATURES > 1
    float *lower, *upper, *diagonal, *shift;
#endif
    float *first, *first_bias;
    struct {
#if CONTEXT
        float *gate, *gate_bias;
#endif
        float *inner, *inner_bias, *outer, *outer_bias;
    } block[BLOCKS];
    float *last, *last_bias;
} layer_t;

typedef float matrix_t[FEATURES * FEATURES];

/* What the gradient needs of one layer and one tile. */
typedef struct {
    feature input[FEATURES], mixed[FEATURES];
    feature hidden[BLOCKS + 1][HIDDEN];
    struct {
        feature open[HIDDEN], inner[HIDDEN], inner_open[HIDDEN], outer[HIDDEN]; /* x sigmoid(x) twice */
#if CONTEXT
        feature gate[HIDDEN];
#endif
    } block[BLOCKS];
    feature out[OUT];
} trace_t;

size_t work_bytes(void) { return LAYERS * sizeof(trace_t); }
int tile_rows(void) { return ROWS; }

/* out = x sigmoid(x); the sigmoid is kept. */
static void silu(feature *out, const feature *x, feature *open) {
    for (int i = 0; i < HIDDEN; i++)
        for (int v = 0; v < VECTORS; v++) out[i][v] = x[i][v] * (open[i][v] = sigmoid(x[i][v]));
}

static inline vec silu_gradient(vec x, vec open) { return open * (1.0f + x * (1.0f - open)); }

/* out = x sigmoid(x), rows one after the other. */
static void active_rows(float *out, const feature *x, const feature *open) {
    feature active[HIDDEN];
    for (int i = 0; i < HIDDEN; i++)
        for (int v = 0; v < VECTORS; v++) active[i][v] = x[i][v] * open[i][v];
    transpose(out, active, HIDDEN, PADDED(HIDDEN));
}

static void load(feature *out, const float *data, ptrdiff_t stride, int count, int rows) {
    float *flat = (float *)out;
    for (int r = 0; r < ROWS; r++)
        for (int i = 0; i < count; i++) flat[i * ROWS + r] = r < rows ? data[r * stride + i] : 0.0f;
}

static void save(float *data, int count, const feature *in, int rows) {
    const float *flat = (const float *)in;
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < count; i++) data[r * count + i] = flat[i * ROWS + r];
}

/* The conditioner: from the kept half in trace->mixed to the parameters of the splines in trace->out. */
static void condition(const layer_t *layer, trace_t *trace, const feature *context) {
    feature active[HIDDEN];
    product(trace->hidden[0], HIDDEN, SEEN + CONTEXT, trace->mixed, KEPT, 1, layer->first, layer->first_bias, 0);
#if CONTEXT
    product(trace->hidden[0], HIDDEN, SEEN + CONTEXT, context, CONTEXT, 1, layer->first + SEEN, NULL, 1);
#endif
    for (int b = 0; b < BLOCKS; b++) {
        silu(active, trace->hidden[b], trace->block[b].open);
        product(trace->block[b].inner, HIDDEN, HIDDEN, active, HIDDEN, 1, layer->block[b].inner, layer->block[b].inner_bias, 0);
        silu(active, trace->block[b].inner, trace->block[b].inner_open);
        product(trace->block[b].outer, HIDDEN, HIDDEN, active, HIDDEN, 1, layer->block[b].outer, layer->block[b].outer_bias, 0);
#if CONTEXT
        product(trace->block[b].gate, HIDDEN, CONTEXT, context, CONTEXT, 1, layer->block[b].gate, layer->block[b].gate_bias, 0);
#endif
        for (int i = 0; i < HIDDEN; i++)
            for (int v = 0; v < VECTORS; v++) {
                vec change = trace->block[b].outer[i][v];
#if CONTEXT
                change *= trace->block[b].gate[i][v] = sigmoid(trace->block[b].gate[i][v]);
#endif
                trace->hidden[b + 1][i][v] = trace->hidden[b][i][v] + change;
            }
    }
    product(trace->out, OUT, HIDDEN, trace->hidden[BLOCKS], HIDDEN, 1, layer->last, layer->last_bias, 0);
}

/* The parameters of the splines of moved dimension d, gathered for one vector of rows. */
static inline void pick(vec *parameters, const feature *out, int d, int v) {
    for (int k = 0; k < EACH; k++) parameters[k] = out[d * EACH + k][v];
}

/* All layers from data to noise; `trace` advances from layer to layer by `step`. */
static void all_layers(const layer_t *layers, const matrix_t *mixes, trace_t *trace, int step, const feature *context, feature *state, feature ladj) {
    for (int l = 0; l < LAYERS; l++, trace += step) {
        memcpy(trace->input, state, FEATURES * sizeof(feature));
#if FEATURES > 1
        product(trace->mixed, FEATURES, FEATURES, state, FEATURES, 1, mixes[l], layers[l].shift, 0);
#else
        memcpy(trace->mixed, state, sizeof trace->mixed);
#endif
        condition(layers + l, trace, context);
        memcpy(state, trace->mixed, FEATURES * sizeof(feature));
        for (int d = 0; d < MOVED; d++)
            for (int v = 0; v < VECTORS; v++) {
                vec parameters[EACH];
                pick(parameters, trace->out, d, v);
                state[KEPT + d][v] = spline(parameters, state[KEPT + d][v], &ladj[v]);
            }
    }
}

/* One call from outside: what to do with which rows.  The rows are cut into shares, which threads take in turn; a share
 * has its own scratch memory and gradient, so that the sums do not depend on who takes it. */
typedef struct {
    const layer_t *layers, *targets; /* parameters, and what their gradients are added to */
    const ptrdiff_t *sizes;          /* of the parameters */
    const long long *orders;         /* the permutation in front of each linear map */
    matrix_t *mixes, *grad_mixes;
    const float *rows, *contexts, *grad_outputs, *grad_ladj;
    float *outputs, *ladj, *grad_contexts;
    float *gradients; /* of all shares but the first, which adds to the targets itself */
    char *work;
    const ptrdiff_t *edges;
    ptrdiff_t size, context_stride, shares, next; /* size: of all parameters together */
    double constant;                              /* log-determinant of the linear maps */
    int task;
} call_t;

enum {
    TO_NOISE,  /* outputs and ladj from data */
    TO_DATA,   /* outputs and ladj from noise; the matrices are inverse */
    GRADIENTS, /* gradients, in outputs those of the rows, from grad_outputs and grad_ladj */
    OBJECTIVE, /* log-densities in ladj, and gradients of their sum weighted by grad_ladj, in one pass */
    REDUCTION, /* the second half of the last two: add the gradients of all shares to the targets */
};

size_t call_bytes(void) { return sizeof(call_t); }

static void to_noise(const call_t *call, void *work, ptrdiff_t begin, ptrdiff_t end) {
    for (ptrdiff_t row = begin; row < end; row += ROWS) {
        const int rows = end - row < ROWS ? (int)(end - row) : ROWS;
        feature context[CONTEXT + 1], state[FEATURES], sum;
        for (int v = 0; v < VECTORS; v++) sum[v] = all((float)call->constant);
        load(context, call->contexts + row * call->context_stride, call->context_stride, CONTEXT, rows);
        load(state, call->rows + row * FEATURES, FEATURES, FEATURES, rows);
        all_layers(call->layers, call->mixes, work, 0, context, state, sum);
        save(call->outputs + row * FEATURES, FEATURES, state, rows);
        save(call->ladj + row, 1, &sum, rows);
    }
}

static void to_data(const call_t *call, void *work, ptrdiff_t begin, ptrdiff_t end) {
    const layer_t *layers = call->layers;
    trace_t *trace = work;
    for (ptrdiff_t row = begin; row < end; row += ROWS) {
        const int rows = end - row < ROWS ? (int)(end - row) : ROWS;
        feature context[CONTEXT + 1], state[FEATURES], sum;
        for (int v = 0; v < VECTORS; v++) sum[v] = all((float)call->constant);
        load(context, call->contexts + row * call->context_stride, call->context_stride, CONTEXT, rows);
        load(state, call->rows + row * FEATURES, FEATURES, FEATURES, rows);
        for (int l = LAYERS - 1; l >= 0; l--) {
            memcpy(trace->mixed, state, sizeof state);
            condition(layers + l, trace, context);
            for (int d = 0; d < MOVED; d++)
                for (int v = 0; v < VECTORS; v++) {
                    vec parameters[EACH];
                    pick(parameters, trace->out, d, v);
                    state[KEPT + d][v] = spline_inverse(parameters, state[KEPT + d][v], &sum[v]);
                }
#if FEATURES > 1
            for (int i = 0; i < FEATURES; i++)
                for (int v = 0; v < VECTORS; v++) trace->mixed[i][v] = state[i][v] - layers[l].shift[i];
            product(state, FEATURES, FEATURES, trace->mixed, FEATURES, 1, call->mixes[l], NULL, 0);
#endif
        }
        save(call->outputs + row * FEATURES, FEATURES, state, rows);
        save(call->ladj + row, 1, &sum, rows);
    }
}

/* The gradient of one layer and tile: `state` holds that of its output and leaves with that of its input. */
static void layer_gradient(const layer_t *layer, const float *mix, const layer_t *gradient, float *grad_mix, const trace_t *trace, const feature *context,
                           const float *context_rows, feature *state, const vec *grad_ladj, feature *grad_context) {
    feature hidden[HIDDEN], change[HIDDEN], active[HIDDEN], out[OUT];
    float rows[ROWS * PADDED(HIDDEN > FEATURES ? HIDDEN : FEATURES)] __attribute__((aligned(64)));
    for (int d = 0; d < MOVED; d++)
        for (int v = 0; v < VECTORS; v++) {
            vec parameters[EACH], each[EACH];
            pick(parameters, trace->out, d, v);
            state[KEPT + d][v] = spline_gradient(each, parameters, trace->mixed[KEPT + d][v], state[KEPT + d][v], grad_ladj[v]);
            for (int k = 0; k < EACH; k++) out[d * EACH + k][v] = each[k];
        }
    transpose(rows, trace->hidden[BLOCKS], HIDDEN, PADDED(HIDDEN));
    gather_gradient(gradient->last, HIDDEN, gradient->last_bias, out, OUT, rows, HIDDEN);
    product(hidden, HIDDEN, 1, out, OUT, HIDDEN, layer->last, NULL, 0);
    for (int b = BLOCKS - 1; b >= 0; b--) {
        for (int i = 0; i < HIDDEN; i++)
            for (int v = 0; v < VECTORS; v++) {
#if CONTEXT
                const vec s = trace->block[b].gate[i][v];
                active[i][v] = hidden[i][v] * trace->block[b].outer[i][v] * s * (1.0f - s);
                change[i][v] = hidden[i][v] * s;
#else
                change[i][v] = hidden[i][v];
#endif
            }
#if CONTEXT
        gather_gradient(gradient->block[b].gate, CONTEXT, gradient->block[b].gate_bias, active, HIDDEN, context_rows, CONTEXT);
        if (grad_context) product(grad_context, CONTEXT, 1, active, HIDDEN, CONTEXT, layer->block[b].gate, NULL, 1);
#endif
        active_rows(rows, trace->block[b].inner, trace->block[b].inner_open);
        gather_gradient(gradient->block[b].outer, HIDDEN, gradient->block[b].outer_bias, change, HIDDEN, rows, HIDDEN);
        product(active, HIDDEN, 1, change, HIDDEN, HIDDEN, layer->block[b].outer, NULL, 0);
        for (int i = 0; i < HIDDEN; i++)
            for (int v = 0; v < VECTORS; v++) 
                change[i][v] = active[i][v] * silu_gradient(trace->block[b].inner[i][v], trace->block[b].inner_open[i][v]);
        active_rows(rows, trace->hidden[b], trace->block[b].open);
        gather_gradient(gradient->block[b].inner, HIDDEN, gradient->block[b].inner_bias, change, HIDDEN, rows, HIDDEN);
        product(active, HIDDEN, 1, change, HIDDEN, HIDDEN, layer->block[b].inner, NULL, 0);
        for (int i = 0; i < HIDDEN; i++)
            for (int v = 0; v < VECTORS; v++) 
                hidden[i][v] += active[i][v] * silu_gradient(trace->hidden[b][i][v], trace->block[b].open[i][v]);
    }
#if KEPT
    transpose(rows, trace->mixed, KEPT, PADDED(KEPT));
    gather_gradient(gradient->first, SEEN + CONTEXT, gradient->first_bias, hidden, HIDDEN, rows, KEPT);
    product(state, KEPT, 1, hidden, HIDDEN, SEEN + CONTEXT, layer->first, NULL, 1);
#else
    gather_gradient(gradient->first, SEEN + CONTEXT, gradient->first_bias, hidden, HIDDEN, rows, 0);
#endif
#if CONTEXT
    gather_gradient(gradient->first + SEEN, SEEN + CONTEXT, NULL, hidden, HIDDEN, context_rows, CONTEXT);
    if (grad_context) product(grad_context, CONTEXT, 1, hidden, HIDDEN, SEEN + CONTEXT, layer->first + SEEN, NULL, 1);
#endif
#if FEATURES > 1
    feature copy[FEATURES];
    transpose(rows, trace->input, FEATURES, PADDED(FEATURES));
    gather_gradient(grad_mix, FEATURES, gradient->shift, state, FEATURES, rows, FEATURES);
    memcpy(copy, state, sizeof copy);
    product(state, FEATURES, 1, copy, FEATURES, FEATURES, mix, NULL, 0);
#endif
}

/* From noise and its log-determinant to the log-density under a standard normal; `state` leaves with the gradient. */
static void normal_density(feature *state, feature ladj, const feature weight) {
    for (int v = 0; v < VECTORS; v++) {
        vec square = all(0.0f);
        for (int d = 0; d < FEATURES; d++) {
            square += state[d][v] * state[d][v];
            state[d][v] *= -weight[v];
        }
        ladj[v] -= 0.5f * square + 0.918938533f * FEATURES;
    }
}

#define PARAMETERS (sizeof(layer_t) / sizeof(float *))

/* Lay the gradients of a share out in its memory. */
static void own_gradients(const call_t *call, layer_t *layers, float *memory) {
    memset(memory, 0, call->size * sizeof(float));
    float **each = (float **)layers;
    for (size_t i = 0; i < LAYERS * PARAMETERS; memory += call->sizes[i++]) each[i] = memory;
}

/* Add the gradient in the weights to that of the share, and write those in the rows, and in the contexts where these are
 * wanted.  The layers are computed again: a tile stays in the cache, where a whole batch would go through memory. */
static void gradients(const call_t *call, void *work, ptrdiff_t begin, ptrdiff_t end, ptrdiff_t share) {
    const layer_t *layers = call->layers;
    const trace_t *trace = work;
    layer_t own[LAYERS];
    const layer_t *gradient = share ? own : call->targets;
    matrix_t *grad_mixes = call->grad_mixes + share * LAYERS;
    if (share) own_gradients(call, own, call->gradients + (share - 1) * call->size);
    if (call->grad_mixes) memset(grad_mixes, 0, LAYERS * sizeof *grad_mixes);
    for (ptrdiff_t row = begin; row < end; row += ROWS) {
        const int rows = end - row < ROWS ? (int)(end - row) : ROWS;
        feature context[CONTEXT + 1], state[FEATURES], ladj, grad_ladj, grad_context[CONTEXT + 1];
        float context_rows[ROWS * PADDED(CONTEXT + 1)] __attribute__((aligned(64)));
        for (int v = 0; v < VECTORS; v++) ladj[v] = all((float)call->constant);
        load(context, call->contexts + row * call->context_stride, call->context_stride, CONTEXT, rows);
        load(state, call->rows + row * FEATURES, FEATURES, FEATURES, rows);
        load(&grad_ladj, call->grad_ladj + row, 1, 1, rows);
        all_layers(layers, call->mixes, work, 1, context, state, ladj);
        if (call->task == OBJECTIVE) {
            normal_density(state, ladj, grad_ladj);
            save(call->ladj + row, 1, &ladj, rows);
        } else
            load(state, call->grad_outputs + row * FEATURES, FEATURES, FEATURES, rows);
        transpose(context_rows, context, CONTEXT, PADDED(CONTEXT));
        memset(grad_context, 0, sizeof grad_context);
        for (int l = LAYERS - 1; l >= 0; l--)
            layer_gradient(layers + l, call->mixes[l], gradient + l, grad_mixes[l], trace + l, context, context_rows, state, grad_ladj,
                           call->grad_contexts ? grad_context : NULL);
        if (call->outputs) save(call->outputs + row * FEATURES, FEATURES, state, rows);
        if (call->grad_contexts) save(call->grad_contexts + row * CONTEXT, CONTEXT, grad_context, rows);
    }
}

/* Add a part of the gradients of all other shares to the targets. */
static void reduce(const call_t *call, ptrdiff_t part) {
    const ptrdiff_t begin = call->size * part / call->shares, end = call->size * (part + 1) / call->shares;
    float *const *targets = (float *const *)call->targets;
    ptrdiff_t start = 0;
    for (size_t i = 0; i < LAYERS * PARAMETERS && start < end; start += call->sizes[i++]) {
        const ptrdiff_t first = begin > start ? begin - start : 0, beyond = end - start < call->sizes[i] ? end - start : call->sizes[i];
        for (ptrdiff_t share = 1; share < call->shares; share++) {
            const float *other = call->gradients + (share - 1) * call->size + start;
            for (ptrdiff_t j = first; j < beyond; j++) targets[i][j] += other[j];
        }
    }
}

static void take_shares(void *data) {
    call_t *call = data;
    ptrdiff_t share;
    while ((share = __atomic_fetch_add(&call->next, 1, __ATOMIC_RELAXED)) < call->shares) {
        const ptrdiff_t begin = call->edges[share], end = call->edges[share + 1];
        void *work = call->work + share * work_bytes();
        if (call->task == TO_NOISE)
            to_noise(call, work, begin, end);
        else if (call->task == TO_DATA)
            to_data(call, work, begin, end);
        else if (call->task == REDUCTION)
            reduce(call, share);
        else
            gradients(call, work, begin, end, share);
    }
}

/* ---- linear maps y = L U P x + b (L unit lower triangular, U upper triangular, P a permutation) ------------------ */

#if FEATURES > 1
#define AT(matrix, i, j) (matrix)[(i) * FEATURES + (j)]

static double positive(double raw) { return (raw > 0 ? raw : 0) + log1p(exp(-fabs(raw))) + 1e-3; }

static double factor(const layer_t *layer, double *lower, double *upper) {
    double ladj = 0;
    for (int i = 0; i < FEATURES; i++)
        for (int j = 0; j < FEATURES; j++) {
            AT(lower, i, j) = j < i ? AT(layer->lower, i, j) : j == i;
            AT(upper, i, j) = j > i ? AT(layer->upper, i, j) : j == i ? positive(layer->diagonal[i]) : 0;
            if (i == j) ladj += log(AT(upper, i, i));
        }
    return ladj;
}

/* The matrix of the map, or of its inverse; returns the log-determinant of the map. */
static double mixing(const layer_t *layer, const long long *order, float *mix, int inverse) {
    double lower[FEATURES * FEATURES], upper[FEATURES * FEATURES], column[FEATURES];
    const double ladj = factor(layer, lower, upper);
    for (int j = 0; j < FEATURES; j++) {
        if (inverse) { /* solve L U x = e_j */
            for (int i = 0; i < FEATURES; i++) {
                column[i] = i == j;
                for (int k = 0; k < i; k++) column[i] -= AT(lower, i, k) * column[k];
            }
            for (int i = FEATURES - 1; i >= 0; i--) {
                for (int k = i + 1; k < FEATURES; k++) column[i] -= AT(upper, i, k) * column[k];
                column[i] /= AT(upper, i, i);
            }
            for (int i = 0; i < FEATURES; i++) AT(mix, order[i], j) = (float)column[i];
        } else {
            for (int i = 0; i < FEATURES; i++) {
                double sum = 0;
                for (int k = 0; k <= i && k <= j; k++) sum += AT(lower, i, k) * AT(upper, k, j);
                AT(mix, i, order[j]) = (float)sum;
            }
        }
    }
    return ladj;
}

static void mixing_gradient(const layer_t *layer, const long long *order, const float *grad_mix, double grad_ladj, const layer_t *gradient) {
    double lower[FEATURES * FEATURES], upper[FEATURES * FEATURES];
    factor(layer, lower, upper);
    for (int i = 0; i < FEATURES; i++)
        for (int j = 0; j < FEATURES; j++) {
            double sum = 0;
            if (j < i) {
                for (int k = j; k < FEATURES; k++) sum += AT(grad_mix, i, order[k]) * AT(upper, j, k);
                AT(gradient->lower, i, j) += (float)sum;
                continue;
            }
            for (int k = i; k < FEATURES; k++) sum += AT(lower, k, i) * AT(grad_mix, k, order[j]);
            if (j > i)
                AT(gradient->upper, i, j) += (float)sum;
            else
                gradient->diagonal[i] += (float)((sum + grad_ladj / AT(upper, i, i)) / (1 + exp(-layer->diagonal[i])));
        }
}
#endif

typedef void team_t(void (*)(void *), void *, unsigned, unsigned);

static void run_shares(call_t *call, int task, team_t *team) {
    call->task = task;
    call->next = 0;
    if (team && call->shares > 1)
        team(take_shares, call, (unsigned)call->shares, 0);
    else
        take_shares(call);
}

/* `team` is GOMP_parallel of the OpenMP library that PyTorch has loaded, or null: a second library would bring a second
 * set of threads, and those of PyTorch keep a core busy for a while after each of its own operations. */
void run(call_t *call, team_t *team) {
    const int task = call->task;
    double constant = 0;
#if FEATURES > 1
    for (int l = 0; l < LAYERS; l++)
        constant += mixing(call->layers + l, call->orders + l * FEATURES, call->mixes[l], task == TO_DATA);
#endif
    call->constant = task == TO_DATA ? -constant : constant;
    run_shares(call, task, team);
    if (task < GRADIENTS) return;
    if (call->shares > 1) run_shares(call, REDUCTION, team);
#if FEATURES > 1
    double total = 0;
    for (ptrdiff_t i = 0; i < call->edges[call->shares]; i++) total += call->grad_ladj[i];
    for (int l = 0; l < LAYERS; l++) {
        for (ptrdiff_t share = 1; share < call->shares; share++)
            for (int i = 0; i < FEATURES * FEATURES; i++) call->grad_mixes[l][i] += call->grad_mixes[share * LAYERS + l][i];
        mixing_gradient(call->layers + l, call->orders + l * FEATURES, call->grad_mixes[l], total, call->targets + l);
    }
#endif
}
