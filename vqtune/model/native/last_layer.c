/* y = silu(x * scale + offset) and the 3 x 3 convolution of y, padded with zeros, to one channel: y is never written. Legend:
   M patches of F rows of T pixels of c channels, float32, side by side; tap k = 3*row + column of the kernel; w floats of
   a bundle: whole pixels and whole vectors. Functions return 0, or 1 without memory. */

#include "silu.h"

#include <stdlib.h>

#define WIDE 64
#define LANES 16

typedef struct {
    int64_t T, c, w, row; /* row: floats of a row's buffer */
    float *rows, *weight, *scale, *offset, *mean;
} Shape;

static int64_t divisor(int64_t a, int64_t b) { return b ? divisor(b, a % b) : a; }

/* `count` rows of zeros, each with a pixel more on either side, so that the three taps of a row are the row itself,
   further on; and numbers of channels, repeated for a bundle. rows is NULL where there is no memory. */
static Shape shaped(int64_t T, int64_t c, int64_t count, const float *weight_9c, const float *found_3c) {
    const int64_t unit = c * (LANES / divisor(c, LANES)), w = unit * ((WIDE + unit - 1) / unit);
    const int64_t row = (T * c + w - 1) / w * w + 2 * c;
    float *memory = calloc(count * row + 12 * w, sizeof(float));
    Shape of = {T, c, w, row, memory, NULL, NULL, NULL, NULL};
    if (!memory) return of;
    of.weight = memory + count * row;
    of.scale = of.weight + 9 * w;
    of.offset = of.scale + w;
    of.mean = of.offset + w;
    for (int64_t tap = 0; tap < 9; tap++) repeat(weight_9c + tap * c, c, w, of.weight + tap * w);
    repeat(found_3c, c, w, of.scale);
    repeat(found_3c + c, c, w, of.offset);
    repeat(found_3c + 2 * c, c, w, of.mean);
    return of;
}

static void activate_row(const Shape *of, const float *x, float *y) {
    const int64_t all = of->T * of->c;
    for (int64_t i = 0; i < all; i += of->w)
        activate(all - i < of->w ? all - i : of->w, x + i, of->scale, of->offset, y + i);
}

static inline void taps(int64_t w, int64_t c, const float *restrict up, const float *restrict at,
                        const float *restrict down, const float *restrict k, float *restrict to) {
    for (int64_t j = 0; j < w; j++)
        to[j] = up[j] * k[j] + up[j + c] * k[w + j] + up[j + 2 * c] * k[2 * w + j] + at[j] * k[3 * w + j] +
                at[j + c] * k[4 * w + j] + at[j + 2 * c] * k[5 * w + j] + down[j] * k[6 * w + j] +
                down[j + c] * k[7 * w + j] + down[j + 2 * c] * k[8 * w + j];
}

/* Writes whole bundles. A loop whose length the compiler knows is unrolled; so below. */
static void taps_of_row(const Shape *of, const float *up, const float *at, const float *down, float *to) {
    const int64_t all = of->T * of->c, c = of->c, w = of->w;
    if (w == WIDE)
        for (int64_t i = 0; i < all; i += WIDE) taps(WIDE, c, up + i, at + i, down + i, of->weight, to + i);
    else
        for (int64_t i = 0; i < all; i += w) taps(w, c, up + i, at + i, down + i, of->weight, to + i);
}

static inline void add_channels(int64_t c, int64_t T, const float *restrict from, float bias, float *restrict to) {
    for (int64_t t = 0; t < T; t++) {
        float s = bias;
        for (int64_t j = 0; j < c; j++) s += from[t * c + j];
        to[t] = s;
    }
}

static inline void to_channels(int64_t c, int64_t T, const float *restrict from, float *restrict to) {
    for (int64_t t = 0; t < T; t++)
        for (int64_t j = 0; j < c; j++) to[t * c + j] = from[t];
}

int last_layer(const float *x, int64_t M, int64_t F, int64_t T, int64_t c, const float *found_3c, const float *weight_9c,
               const float *bias, float *out) {
    const Shape of = shaped(T, c, 5, weight_9c, found_3c);
    if (!of.rows) return 1;
    float *sum = of.rows + 4 * of.row;
    const float *zero = of.rows + 3 * of.row;
    for (int64_t m = 0; m < M; m++) {
        const float *patch = x + m * F * T * c;
        activate_row(&of, patch, of.rows + c);
        for (int64_t f = 0; f < F; f++) {
            float *next = of.rows + (f + 1) % 3 * of.row, *to = out + (m * F + f) * T;
            const float *up = f ? of.rows + (f + 2) % 3 * of.row : zero;
            if (f + 1 < F) activate_row(&of, patch + (f + 1) * T * c, next + c);
            taps_of_row(&of, up, of.rows + f % 3 * of.row, f + 1 < F ? next : zero, sum);
            c == 8 ? add_channels(8, T, sum, *bias, to) : add_channels(c, T, sum, *bias, to);
        }
    }
    free(of.rows);
    return 0;
}

/* Products of a row's three taps with the gradient, added up in registers. */
static void products(const Shape *of, const float *restrict x, const float *restrict g, float *restrict sums) {
    const int64_t w = of->w, c = of->c, all = of->T * c;
    for (int64_t v = 0; v < w; v += LANES) {
        float left[LANES] = {0}, middle[LANES] = {0}, right[LANES] = {0};
        for (int64_t i = v; i < all; i += w)
            for (int n = 0; n < LANES; n++) {
                left[n] += x[i + n] * g[i + n];
                middle[n] += x[i + c + n] * g[i + n];
                right[n] += x[i + 2 * c + n] * g[i + n];
            }
        for (int n = 0; n < LANES; n++) {
            sums[v + n] += left[n];
            sums[w + v + n] += middle[n];
            sums[2 * w + v + n] += right[n];
        }
    }
}

/* As norm.c's of a whole tensor, for a row that is still in the cache. */
static void gradient_sums(const Shape *of, const float *x, const float *dy, float *t, float *first, float *second) {
    const int64_t all = of->T * of->c, w = of->w;
    for (int64_t i = 0; i < all; i += w)
        activation_gradient(all - i < w ? all - i : w, x + i, dy + i, of->scale, of->offset, of->mean, t + i, first,
                            second);
}

/* norm.c's t, and what is added to dweight and to norm.c's sums. The taps of `flipped` come the other way round. */
int last_layer_gradient(const float *x, const float *g, int64_t M, int64_t F, int64_t T, int64_t c,
                        const float *found_3c, const float *flipped_9c, float *t, double *dweight_9c,
                        double *sums_2c) {
    const Shape of = shaped(T, c, 8, flipped_9c, found_3c);
    float *sums = malloc(11 * of.w * sizeof(float)); /* nine of taps, two of the norm */
    const int failed = !of.rows || !sums;
    for (int64_t m = 0; !failed && m < M; m++) {
        float *gs = of.rows, *ys = gs + 3 * of.row, *to = gs + 7 * of.row;
        const float *zero = gs + 6 * of.row;
        memset(sums, 0, 11 * of.w * sizeof(float));
        for (int64_t f = -1; f < F; f++) {
            const int64_t up = (f + 2) % 3 * of.row, at = (f + 3) % 3 * of.row, down = (f + 1) % 3 * of.row;
            const int64_t here = (m * F + f) * T;
            if (f + 1 < F) {
                const float *from = g + here + T;
                c == 8 ? to_channels(8, T, from, gs + down + c) : to_channels(c, T, from, gs + down + c);
                activate_row(&of, x + (here + T) * c, ys + down + c);
            }
            if (f < 0) continue;
            taps_of_row(&of, f ? gs + up : zero, gs + at, f + 1 < F ? gs + down : zero, to);
            gradient_sums(&of, x + here * c, to, t + here * c, sums + 9 * of.w, sums + 10 * of.w);
            if (f) products(&of, ys + up, gs + at + c, sums);
            products(&of, ys + at, gs + at + c, sums + 3 * of.w);
            if (f + 1 < F) products(&of, ys + down, gs + at + c, sums + 6 * of.w);
        }
        for (int64_t tap = 0; tap < 9; tap++) add_up(sums + tap * of.w, c, of.w, dweight_9c + tap * c);
        for (int64_t part = 0; part < 2; part++) add_up(sums + (9 + part) * of.w, c, of.w, sums_2c + part * c);
    }
    free(of.rows);
    free(sums);
    return failed;
}
