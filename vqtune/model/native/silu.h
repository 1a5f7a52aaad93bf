/* SiLU in single precision, and what is done with it to a bundle of normalised rows: loops that a compiler turns into
   vectors. Legend: w floats of a bundle, whole rows of c channels; scale, offset and mean are repeated for it. */

#ifndef VQTUNE_SILU_H
#define VQTUNE_SILU_H

#include <stdint.h>
#include <string.h>

static inline float clamp(float t) {
    t = t > -64.0f ? t : -64.0f;
    return t < 64.0f ? t : 64.0f;
}

/* 1 / (1 + exp(-y)) to some 2e-7: 2^t of a whole number by its bits, of the rest by a polynomial (the exponential's
   series). Limits of 2^-64 and 2^64, not further out: the compiler multiplies with them, and the processor is slow
   with numbers below 1e-38. NaN comes out as some number, and y * sigmoid(y) as NaN. */
static inline float sigmoid(float y) {
    const float t = clamp(y * -1.44269504f);
    const float whole = t + 12582912.0f; /* 1.5 * 2^23: the last bits are the nearest whole number */
    const float f = t - (whole - 12582912.0f);
    int32_t bits, scale;
    float power, e = 1.54035304e-4f;
    memcpy(&bits, &whole, 4);
    scale = (int32_t)((uint32_t)bits << 23) + (127 << 23);
    memcpy(&power, &scale, 4);
    e = e * f + 1.33335581e-3f;
    e = e * f + 9.61812911e-3f;
    e = e * f + 5.55041087e-2f;
    e = e * f + 2.40226507e-1f;
    e = e * f + 6.93147181e-1f;
    e = e * f + 1.0f;
    return 1.0f / (1.0f + e * power);
}

/* What SiLU's gradient is multiplied by at y. */
static inline float slope_of(float y) {
    const float p = sigmoid(y);
    return p * (1.0f + y * (1.0f - p));
}

static inline void repeat(const float *from, int64_t c, int64_t w, float *to) {
    for (int64_t j = 0; j < w; j++) to[j] = from[j % c];
}

static inline void add_up(const float *from, int64_t c, int64_t w, double *to) {
    for (int64_t j = 0; j < w; j++) to[j % c] += from[j];
}

/* y = silu(x * scale + offset) */
static inline void activate(int64_t w, const float *restrict x, const float *restrict scale,
                            const float *restrict offset, float *restrict y) {
    for (int64_t j = 0; j < w; j++) {
        const float v = x[j] * scale[j] + offset[j];
        y[j] = v * sigmoid(v);
    }
}

/* t = dy * silu'(x * scale + offset), and what is added to the sums of t and of t * (x - mean). */
static inline void activation_gradient(int64_t w, const float *restrict x, const float *restrict dy,
                                       const float *restrict scale, const float *restrict offset,
                                       const float *restrict mean, float *restrict t, float *restrict first,
                                       float *restrict second) {
    for (int64_t j = 0; j < w; j++) {
        const float value = dy[j] * slope_of(x[j] * scale[j] + offset[j]);
        t[j] = value;
        first[j] += value;
        second[j] += value * (x[j] - mean[j]);
    }
}

#endif
