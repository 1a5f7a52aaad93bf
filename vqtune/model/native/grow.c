/* Legend: M maps of H x W pixels of c channels, float32, channels side by side; (r, s) place in a 2 x 2 block. */

#include <stdint.h>
#include <string.h>

static inline void pairs(int64_t c, int64_t W, const float *restrict z, float *restrict y) {
    for (int64_t p = 0; p < W; p++, z += 4 * c, y += 2 * c)
        for (int64_t j = 0; j < c; j++) {
            y[j] = z[j];
            y[c + j] = z[5 * c + j]; /* the next pixel's s = 1 */
        }
}

/* Returns 0; y (M, 2H, 2W, c): pixel (2q+r, 2p+s) is z (M, H+1, W+1, 2, 2, c) at (q+r, p+s, r, s). */
int interleave(const float *z, int64_t M, int64_t H, int64_t W, int64_t c, float *y) {
    for (int64_t row = 0; row < M * 2 * H; row++) {
        const int64_t m = row / (2 * H), q = row % (2 * H) / 2, r = row % 2;
        const float *from = z + ((m * (H + 1) + q + r) * (W + 1) * 4 + 2 * r) * c;
        float *to = y + row * 2 * W * c;
        c == 8 ? pairs(8, W, from, to) : pairs(c, W, from, to); /* a length that the compiler knows is unrolled */
    }
    return 0;
}
