/* Vectors as wide as those of the processor, and elementary functions of them. */
#pragma once

#include <stddef.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int ivec __attribute__((vector_size(4 * LANES)));

/* ---- elementary functions on vectors --------------------------------------------------------------------------- */

static inline vec all(float value) { return value - (vec){0}; }
static inline vec choose(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }
/* A first argument that is not a number stays so. */
static inline vec larger(vec a, vec b) { return choose(a < b, b, a); }
static inline vec smaller(vec a, vec b) { return choose(a > b, b, a); }

/* Cody and Waite reduction, polynomial of Cephes (Moshier): relative error below 2e-7. */
static inline vec vexp(vec any) {
    const vec x = smaller(larger(any, all(-87.0f)), all(88.0f));
    vec shifted = x * 1.44269504f + 12582912.0f;
    vec n = shifted - 12582912.0f;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return choose(any == any, (vec)((ivec)p + (((ivec)shifted - 0x4B400000) << 23)), any);
}

static inline vec vlog(vec x) {
    ivec bits = (ivec)x;
    ivec exponent = (bits - 0x3f3504f3) >> 23;
    vec f = (vec)(bits - (exponent << 23)) - 1.0f;
    vec p = all(7.0376836292e-2f);
    p = p * f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    vec n = __builtin_convertvector(exponent, vec);
    return f + (p * f - 0.5f) * f * f + n * 0.693147181f;
}

/* ---- columns of at most LANES rows, one row for each lane; lanes beyond the last row repeat the first ------------ */

static inline __attribute__((always_inline)) vec take(const float *data, ptrdiff_t stride, ptrdiff_t rows) {
    vec column;
    for (ptrdiff_t i = 0; i < LANES; i++) column[i] = data[i < rows ? i * stride : 0];
    return column;
}

static inline __attribute__((always_inline)) void put(float *data, ptrdiff_t stride, ptrdiff_t rows, vec column) {
    for (ptrdiff_t i = 0; i < LANES; i++)
        if (i < rows) data[i * stride] = column[i];
}
