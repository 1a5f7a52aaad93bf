/* Batch norm and SiLU in two passes forward and two backward. Legend: n rows of c channels, float32, side by side. All
   functions return 0.
   Rows are taken in bundles of at least WIDE floats, so that few channels fill a vector register as well. */

#include "silu.h"

#include <math.h>

#define WIDE 64
#define MOST 1024 /* channels */
#define BLOCK 64  /* bundles that are added up in float; their sums in double */

static int64_t width(int64_t c) { return (WIDE + c - 1) / c * c; }

/* sums: of x - shift, then of its squares, per channel. With a shift near the mean they keep their digits. */
static void moments(const float *x, int64_t n, int64_t c, const float *shift, double *sums) {
    const int64_t w = width(c), all = n * c;
    float s[MOST + WIDE], first[MOST + WIDE], second[MOST + WIDE];
    repeat(shift, c, w, s);
    for (int64_t i = 0; i < all;) {
        memset(first, 0, w * sizeof(float));
        memset(second, 0, w * sizeof(float));
        for (int b = 0; b < BLOCK && i < all; b++, i += w) {
            const int64_t here = all - i < w ? all - i : w;
            const float *restrict xs = x + i;
            for (int64_t j = 0; j < here; j++) {
                const float d = xs[j] - s[j];
                first[j] += d;
                second[j] += d * d;
            }
        }
        add_up(first, c, w, sums);
        add_up(second, c, w, sums + c);
    }
}

/* The running statistics move; found: scale, offset, mean and 1 / standard deviation of each channel. */
int norm_statistics(const float *x, int64_t n, int64_t c, const float *weight, const float *bias, float *running_mean,
                    float *running_var, float momentum, float eps, float *found_4c) {
    float *scale = found_4c, *offset = scale + c, *mean = offset + c, *inverse = mean + c;
    double sums[2 * MOST] = {0};
    moments(x, n, c, x, sums);
    for (int64_t j = 0; j < c; j++) {
        const double m = sums[j] / n, spread = sums[c + j] / n - m * m;
        const double var = spread < 0 ? 0 : spread, at = m + x[j], inv = 1 / sqrt(var + eps);
        running_mean[j] = (float)((1 - momentum) * running_mean[j] + momentum * at);
        running_var[j] = (float)((1 - momentum) * running_var[j] + momentum * var * n / (n > 1 ? n - 1 : 1));
        mean[j] = (float)at;
        inverse[j] = (float)inv;
        scale[j] = (float)(weight[j] * inv);
        offset[j] = (float)(bias[j] - at * weight[j] * inv);
    }
    return 0;
}

/* y = silu(x * scale + offset) */
int norm_apply(const float *x, int64_t n, int64_t c, const float *found_2c, float *y) {
    const int64_t w = width(c), all = n * c;
    float a[MOST + WIDE], b[MOST + WIDE];
    repeat(found_2c, c, w, a);
    repeat(found_2c + c, c, w, b);
    for (int64_t i = 0; i < all; i += w) activate(all - i < w ? all - i : w, x + i, a, b, y + i);
    return 0;
}

/* t = dy * silu'(y); to sums its own and those of t * (x - mean) are added, per channel. */
int norm_gradient_sums(const float *x, const float *dy, int64_t n, int64_t c, const float *found_4c, float *t,
                       double *sums) {
    const int64_t w = width(c), all = n * c;
    float a[MOST + WIDE], b[MOST + WIDE], m[MOST + WIDE], first[MOST + WIDE], second[MOST + WIDE];
    repeat(found_4c, c, w, a);
    repeat(found_4c + c, c, w, b);
    repeat(found_4c + 2 * c, c, w, m);
    for (int64_t i = 0; i < all;) {
        memset(first, 0, w * sizeof(float));
        memset(second, 0, w * sizeof(float));
        for (int k = 0; k < BLOCK && i < all; k++, i += w)
            activation_gradient(all - i < w ? all - i : w, x + i, dy + i, a, b, m, t + i, first, second);
        add_up(first, c, w, sums);
        add_up(second, c, w, sums + c);
    }
    return 0;
}

/* From t and these sums: gradients of weight and bias, and in place of t dx = scale * t - level - slope * (x - mean). */
int norm_gradient(const float *x, int64_t n, int64_t c, const float *found_4c, const double *sums, float *dweight,
                  float *dbias, float *t) {
    const float *scale = found_4c, *inverse = found_4c + 3 * c;
    const int64_t w = width(c), all = n * c;
    float a[MOST + WIDE], m[MOST + WIDE], level[MOST + WIDE], slope[MOST + WIDE];
    repeat(scale, c, w, a);
    repeat(found_4c + 2 * c, c, w, m);
    for (int64_t j = 0; j < c; j++) {
        dbias[j] = (float)sums[j];
        dweight[j] = (float)(sums[c + j] * inverse[j]);
    }
    for (int64_t j = 0; j < w; j++) {
        const int64_t of = j % c;
        level[j] = (float)(scale[of] * sums[of] / n);
        slope[j] = (float)(scale[of] * sums[c + of] * inverse[of] * inverse[of] / n);
    }
    for (int64_t i = 0; i < all; i += w) {
        const int64_t here = all - i < w ? all - i : w;
        const float *restrict xs = x + i;
        float *restrict to = t + i;
        for (int64_t j = 0; j < here; j++) to[j] = a[j] * to[j] - level[j] - slope[j] * (xs[j] - m[j]);
    }
    return 0;
}
