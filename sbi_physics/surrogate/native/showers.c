/* Showers from the energies of their layers and from what a model says about their voxels: as `Showers.decode`.
 *
 * LARGEST, the number of voxels of the largest layer, and ROUNDS come from the command line.  LANES showers go through
 * a layer together, which stays in the cache.
 */
#include <float.h>

#include "lanes.h"

typedef struct {
    ptrdiff_t rows, shares, next;
    ptrdiff_t layers, voxels, events_stride;
    const float *events, *wanted;
    const long long *ends;    /* of the layers, in voxels */
    const long long *columns; /* of the voxels among the events; -1 where a voxel is constant */
    const float *constant, *thresholds, *caps;
    float *showers;
    double threshold;
} call_t;

static inline __attribute__((always_inline)) vec sum(const vec *shower, int count) {
    vec total = all(0.0f);
    for (int i = 0; i < count; i++) total += shower[i];
    return total;
}

static inline __attribute__((always_inline)) vec largest(const vec *shower, int count) {
    vec top = shower[0];
    for (int i = 1; i < count; i++) top = larger(top, shower[i]);
    return top;
}

static inline int any(ivec mask) {
    int found = 0;
    for (int i = 0; i < LANES; i++) found |= mask[i];
    return found;
}

/* Where a layer is empty that should not be, the voxels that came nearest to the threshold hold what it has. */
static void fill(vec *shower, const vec *event, ivec empty, float threshold, int count) {
    const vec top = largest(event, count);
    for (int i = 0; i < count; i++) {
        const vec nearest = choose(event[i] == top, all(threshold), all(0.0f));
        shower[i] = choose(empty, nearest, shower[i]);
    }
}

static inline __attribute__((always_inline)) void layer(
    const call_t *call, const float *events, vec wanted, float *showers, ptrdiff_t first, int count, ptrdiff_t rows) {
    const float threshold = (float)call->threshold;
    vec event[LARGEST], shower[LARGEST];
    for (int i = 0; i < count; i++) {
        const ptrdiff_t voxel = first + i, column = call->columns[voxel];
        if (column < 0) {
            event[i] = all(-__builtin_inff());
            shower[i] = all(call->constant[voxel]);
            continue;
        }
        event[i] = take(events + column, call->events_stride, rows);
        const vec risen = smaller(call->thresholds[voxel] * vexp(event[i]), all(call->caps[voxel]));
        shower[i] = choose(event[i] < 0.0f, all(0.0f), risen);
    }
    vec total = sum(shower, count);
    const ivec empty = (total == 0.0f) & (wanted > 0.0f);
    if (any(empty)) {
        fill(shower, event, empty, threshold, count);
        total = sum(shower, count);
    }
    for (int round = 0; round < ROUNDS; round++) {
        const vec scale = wanted / larger(total, all(FLT_MIN)), top = largest(shower, count) * scale;
        total = all(0.0f);
        for (int i = 0; i < count; i++) {
            const vec scaled = shower[i] * scale;
            shower[i] = choose((scaled < threshold) & (scaled < top), all(0.0f), scaled);
            total += shower[i];
        }
    }
    for (int i = 0; i < count; i++)
        put(showers + first + i, call->voxels, rows, choose(shower[i] < threshold, all(0.0f), shower[i]));
}

static inline __attribute__((always_inline)) void some_rows(const call_t *call, ptrdiff_t begin, ptrdiff_t rows) {
    const float *events = call->events + begin * call->events_stride;
    for (ptrdiff_t l = 0, first = 0; l < call->layers; first = call->ends[l++]) {
        const vec wanted = take(call->wanted + begin * call->layers + l, call->layers, rows);
        layer(call, events, wanted, call->showers + begin * call->voxels, first, (int)(call->ends[l] - first), rows);
    }
}

#include "rows.h"
