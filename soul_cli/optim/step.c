/* A clipped second-order step in one pass over memory.
 *
 * soul_step_ reads p, g, m, h and writes p, m; soul_released_step_ writes h too.  The reference are the functions of
 * these names in sophia.py, whose options these take in the same order; expressions follow it operation by operation,
 * with the fused multiply-adds of torch's own kernels.  Each works on several runs of coordinates; lists are parallel.
 *
 * To counts it adds: unclipped coordinates with m != 0, those with m != 0, sum of m^2, sum of |h|.
 */
#include <math.h>
#include <stdint.h>

enum { BLOCK = 4096 }; /* coordinates whose sums fit float32 and int32 well */

void soul_step_(int64_t runs, float **ps, const float **gs, float **ms, const float **hs, const int64_t *sizes,
                const double *options, double *counts) {
    const float rate = options[0], decay = options[1], gain = options[2], rho = options[3], eps = options[4];
    for (int64_t k = 0; k < runs; k++) {
        for (int64_t start = 0; start < sizes[k]; start += BLOCK) {
            float *restrict p = ps[k] + start, *restrict m = ms[k] + start;
            const float *restrict g = gs[k] + start, *restrict h = hs[k] + start;
            const int n = sizes[k] - start < BLOCK ? sizes[k] - start : BLOCK;
            int unclipped = 0, active = 0;
            float square = 0, size = 0;
#pragma omp simd reduction(+ : unclipped, active, square, size)
            for (int i = 0; i < n; i++) {
                const float momentum = fmaf(gain, g[i] - m[i], m[i]);
                float width = rho * h[i];
                width = width < eps ? eps : width;
                float ratio = momentum / width;
                unclipped += (fabsf(ratio) < 1) & (momentum != 0);
                active += momentum != 0;
                square += momentum * momentum;
                size += fabsf(h[i]);
                ratio = ratio > 1 ? 1 : ratio;
                ratio = ratio < -1 ? -1 : ratio;
                m[i] = momentum;
                p[i] = fmaf(-rate, ratio, p[i] * decay);
            }
            counts[0] += unclipped, counts[1] += active, counts[2] += square, counts[3] += size;
        }
    }
}

void soul_released_step_(int64_t runs, float **ps, const float **gs, float **ms, float **hs, const int64_t *sizes,
                         const double *options, double *counts) {
    const float rate = options[0], decay = options[1], beta1 = options[2], beta2 = options[3], width = options[4];
    const float gain1 = 1 - options[2], gain2 = 1 - options[3];
    for (int64_t k = 0; k < runs; k++) {
        for (int64_t start = 0; start < sizes[k]; start += BLOCK) {
            float *restrict p = ps[k] + start, *restrict m = ms[k] + start, *restrict h = hs[k] + start;
            const float *restrict g = gs[k] + start;
            const int n = sizes[k] - start < BLOCK ? sizes[k] - start : BLOCK;
            int unclipped = 0, active = 0;
            float square = 0, size = 0;
#pragma omp simd reduction(+ : unclipped, active, square, size)
            for (int i = 0; i < n; i++) {
                const float curvature = fmaf(gain2 * g[i], g[i], h[i] * beta2);
                const float once = fmaf(gain1, g[i], m[i] * beta1), momentum = fmaf(gain1, g[i], once * beta1);
                float ratio = fabsf(momentum) / (width * curvature + 1e-15f);
                unclipped += (ratio < 1) & (momentum != 0);
                active += momentum != 0;
                square += momentum * momentum;
                size += fabsf(curvature);
                ratio = ratio > 1 ? 1 : ratio;
                m[i] = momentum;
                h[i] = curvature;
                p[i] = p[i] * decay - rate * copysignf(ratio, momentum);
            }
            counts[0] += unclipped, counts[1] += active, counts[2] += square, counts[3] += size;
        }
    }
}
