/* The 3 x 3 convolution from c channels to one, padded with zeros. Legend: M patches of F rows of T pixels of c channels,
   float32, side by side; tap k = 3*row + column of the kernel; w floats of a bundle: whole pixels and whole vectors. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define WIDE 64
#define LANES 16

/* The loop of a few channels unrolls once the compiler knows their number, that of a bundle as well. */
#define KNOWN(number, usual, call_with) \
    do {                                \
        if ((number) == (usual))        \
            call_with(usual);           \
        else                            \
            call_with(number);          \
    } while (0)

typedef struct {
    int64_t T, c, w, row; /* row: floats of a row's buffer */
    float *memory, *weight;
} Shape;

static int64_t divisor(int64_t a, int64_t b) { return b ? divisor(b, a % b) : a; }

/* `count` rows of zeros, each with a pixel more on either side, so that the three taps of a row are the row itself,
   further on; and the taps, repeated for a bundle. memory is NULL where there is none. */
static Shape shaped(int64_t T, int64_t c, int64_t count, const float *weight_9c) {
    const int64_t unit = c * (LANES / divisor(c, LANES)), w = unit * ((WIDE + unit - 1) / unit);
    const int64_t row = (T * c + w - 1) / w * w + 2 * c;
    Shape of = {T, c, w, row, calloc(count * row + 9 * w, sizeof(float)), NULL};
    if (!of.memory) return of;
    of.weight = of.memory + count * row;
    for (int64_t tap = 0; tap < 9; tap++)
        for (int64_t j = 0; j < w; j++) of.weight[tap * w + j] = weight_9c[tap * c + j % c];
    return of;
}

static inline void taps(int64_t w, int64_t c, const float *restrict up, const float *restrict at,
                        const float *restrict down, const float *restrict k, float *restrict to) {
    for (int64_t j = 0; j < w; j++)
        to[j] = up[j] * k[j] + up[j + c] * k[w + j] + up[j + 2 * c] * k[2 * w + j] + at[j] * k[3 * w + j] +
                at[j + c] * k[4 * w + j] + at[j + 2 * c] * k[5 * w + j] + down[j] * k[6 * w + j] +
                down[j + c] * k[7 * w + j] + down[j + 2 * c] * k[8 * w + j];
}

/* Writes whole bundles. */
static void taps_of_row(const Shape *of, const float *up, const float *at, const float *down, float *to) {
#define TAPS(width) taps(width, of->c, up + i, at + i, down + i, of->weight, to + i)
    for (int64_t i = 0; i < of->T * of->c; i += of->w) KNOWN(of->w, WIDE, TAPS);
#undef TAPS
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

/* Returns 0, or 1 without memory. */
int to_one(const float *x, int64_t M, int64_t F, int64_t T, int64_t c, const float *weight_9c, float bias, float *out) {
    const Shape of = shaped(T, c, 5, weight_9c);
    if (!of.memory) return 1;
    float *rows = of.memory, *sum = rows + 4 * of.row;
    const float *zero = rows + 3 * of.row;
    for (int64_t m = 0; m < M; m++) {
        const float *patch = x + m * F * T * c;
        memcpy(rows + c, patch, T * c * sizeof(float));
        for (int64_t f = 0; f < F; f++) {
            float *next = rows + (f + 1) % 3 * of.row;
            const float *up = f ? rows + (f + 2) % 3 * of.row : zero;
            if (f + 1 < F) memcpy(next + c, patch + (f + 1) * T * c, T * c * sizeof(float));
            taps_of_row(&of, up, rows + f % 3 * of.row, f + 1 < F ? next : zero, sum);
#define ADD(channels) add_channels(channels, T, sum, bias, out + (m * F + f) * T)
            KNOWN(c, 8, ADD);
        }
    }
    free(of.memory);
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

/* dx, and what is added to dweight. The taps of `flipped` come the other way round. Returns 0, or 1 without memory. */
int to_one_gradient(const float *x, const float *g, int64_t M, int64_t F, int64_t T, int64_t c, const float *flipped_9c,
                    float *dx, double *dweight_9c) {
    const Shape of = shaped(T, c, 8, flipped_9c);
    float *sums = malloc(9 * of.w * sizeof(float));
    const int failed = !of.memory || !sums;
    for (int64_t m = 0; !failed && m < M; m++) {
        float *gs = of.memory, *xs = gs + 3 * of.row, *to = gs + 7 * of.row;
        const float *zero = gs + 6 * of.row;
        memset(sums, 0, 9 * of.w * sizeof(float));
        for (int64_t f = -1; f < F; f++) {
            const int64_t up = (f + 2) % 3 * of.row, at = (f + 3) % 3 * of.row, down = (f + 1) % 3 * of.row;
            if (f + 1 < F) {
#define SPREAD(channels) to_channels(channels, T, g + (m * F + f + 1) * T, gs + down + c)
                KNOWN(c, 8, SPREAD);
                memcpy(xs + down + c, x + (m * F + f + 1) * T * c, T * c * sizeof(float));
            }
            if (f < 0) continue;
            taps_of_row(&of, f ? gs + up : zero, gs + at, f + 1 < F ? gs + down : zero, to);
            memcpy(dx + (m * F + f) * T * c, to, T * c * sizeof(float));
            if (f) products(&of, xs + up, gs + at + c, sums);
            products(&of, xs + at, gs + at + c, sums + 3 * of.w);
            if (f + 1 < F) products(&of, xs + down, gs + at + c, sums + 6 * of.w);
        }
        for (int64_t tap = 0; tap < 9; tap++)
            for (int64_t j = 0; j < of.w; j++) dweight_9c[tap * c + j % c] += sums[tap * of.w + j];
    }
    free(of.memory);
    free(sums);
    return failed;
}
