/* Numbers that are zero or above a threshold, drawn from what a network gave and from normal noise: as `Hurdles.draw`.
 *
 * COMPONENTS of a mixture and WAVES in the angle come from the command line.  LANES rows go through the numbers together,
 * those of a group one after the other, so that what they share is computed once.
 */
#include "lanes.h"

#define SMALLEST 1e-7f
#define LOWEST_RATE -12.0f
#define HIGHEST_RATE 5.0f
#define LOWEST_SPREAD -6.0f
#define HIGHEST_SPREAD 2.0f

typedef struct {
    ptrdiff_t rows, shares, next;
    ptrdiff_t numbers, groups, noise_stride;
    const float *raw, *noise, *edges, *scales, *waves;
    const long long *group_of, *order;
    const unsigned char *always;
    float *events;
} call_t;

/* What the numbers of a group share. */
typedef struct {
    vec log_rate, bound[COMPONENTS], position[COMPONENTS], sd[COMPONENTS], tilt[WAVES + 1], shift[WAVES + 1];
} law_t;

static inline vec clamp(vec x, float low, float high) { return smaller(larger(x, all(low)), all(high)); }

/* The share of a standard normal distribution below x: e^{-x^2/2} times a polynomial in 1 / (1 + |x|/2), which was
 * fitted to the scaled complementary error function on [0, 6]; relative error below 3e-7. */
static inline vec ndtr(vec x) {
    const vec a = smaller(larger(x, -x), all(6.0f)), t = 1.0f / (1.0f + 0.5f * a);
    vec p = all(0.0230133478f);
    p = p * t - 0.0992958173f;
    p = p * t + 0.110870995f;
    p = p * t + 0.140488923f;
    p = p * t - 0.440108418f;
    p = p * t + 0.283501446f;
    p = p * t + 0.0672468767f;
    p = p * t + 0.216715708f;
    p = p * t + 0.197467163f;
    p = p * t + 9.97860698e-05f;
    const vec tail = p * vexp(-0.5f * a * a);
    return choose(x > 0.0f, 1.0f - tail, tail);
}

static inline __attribute__((always_inline)) law_t law_of(const float *raw, ptrdiff_t groups, ptrdiff_t rows) {
    const ptrdiff_t stride = (1 + 3 * COMPONENTS + 2 * WAVES) * groups;
    law_t law;
    vec top, total = all(0.0f);
    law.log_rate = clamp(take(raw, stride, rows), LOWEST_RATE, HIGHEST_RATE);
    for (int k = 0; k < COMPONENTS; k++) {
        law.bound[k] = take(raw += groups, stride, rows);
        top = k ? larger(top, law.bound[k]) : law.bound[k];
    }
    for (int k = 0; k < COMPONENTS; k++) law.bound[k] = total += vexp(law.bound[k] - top);
    for (int k = 0; k < COMPONENTS; k++) law.bound[k] /= total;
    for (int k = 0; k < COMPONENTS; k++) law.position[k] = take(raw += groups, stride, rows);
    for (int k = 0; k < COMPONENTS; k++) law.sd[k] = vexp(clamp(take(raw += groups, stride, rows), LOWEST_SPREAD, HIGHEST_SPREAD));
    for (int w = 0; w < WAVES; w++) law.tilt[w] = take(raw += groups, stride, rows);
    for (int w = 0; w < WAVES; w++) law.shift[w] = take(raw += groups, stride, rows);
    return law;
}

static inline __attribute__((always_inline)) vec drawn(
    const law_t *law, const float *waves, ptrdiff_t numbers, vec which, vec size, float edge, float scale, int always) {
    vec log_rate = law->log_rate, shift = all(0.0f);
    for (int w = 0; w < WAVES; w++) {
        log_rate += law->tilt[w] * waves[w * numbers];
        shift += law->shift[w] * waves[w * numbers];
    }
    if (WAVES) log_rate = clamp(log_rate, LOWEST_RATE, HIGHEST_RATE);
    const vec share = clamp(ndtr(which), SMALLEST, 1 - SMALLEST), rate = vexp(log_rate);
    const vec none = vexp(-rate), rest = (share - none) / larger(1.0f - none, all(SMALLEST));
    vec place = law->position[0], width = law->sd[0];
    for (int k = 1; k < COMPONENTS; k++) {
        const ivec later = rest > law->bound[k - 1];
        place = choose(later, law->position[k], place);
        width = choose(later, law->sd[k], width);
    }
    const vec value = place + width * size + shift, above = value - edge;
    if (always) return value;
    const vec wait = -vlog(share), folded = edge + larger(above, -above);
    return choose(wait > rate, edge - (1.0f - rate / wait) / scale, folded);
}

static inline __attribute__((always_inline)) void some_rows(const call_t *call, ptrdiff_t begin, ptrdiff_t rows) {
    const ptrdiff_t numbers = call->numbers, groups = call->groups, stride = call->noise_stride;
    const float *raw = call->raw + begin * (1 + 3 * COMPONENTS + 2 * WAVES) * groups;
    const float *noise = call->noise + begin * stride;
    float *events = call->events + begin * numbers;
    law_t law;
    for (ptrdiff_t i = 0; i < numbers; i++) {
        const long long group = call->group_of[i], column = call->order[i];
        if (i == 0 || group != call->group_of[i - 1]) law = law_of(raw + group, groups, rows);
        const vec which = take(noise + i, stride, rows), size = take(noise + numbers + i, stride, rows);
        put(events + column, numbers, rows,
            drawn(&law, call->waves + i, numbers, which, size, call->edges[group], call->scales[group], call->always[column]));
    }
}

#include "rows.h"
