/* avx512.h - the instructions of AVX-512 that xguide.h uses, for machines without it: those that
 * AVX2 has, too, work on both halves, the others number by number, as their manual says. With them,
 * and with vectors that the compiler puts together itself, that level's own text runs; avx512.sh
 * makes it call like_NAME for _mm512_NAME. */
#ifndef AVX512_H
#define AVX512_H

#include <immintrin.h>
#include <stdbool.h>
#include <string.h>

#define LIKE static inline __attribute__((always_inline, target("avx2,fma")))

typedef union halves { __m512 all; __m256 half[2]; } halves;

LIKE __m512 like_join(__m256 low, __m256 high) { return ((halves) { .half = { low, high } }).all; }
LIKE __m256 like_half(__m512 a, int i)         { return ((halves) { .all = a }).half[i]; }

#define LIKE_HALVES(name, parameters, half)                                                        \
    LIKE __m512 like_##name parameters { return like_join(half(0), half(1)); }
#define LIKE_SQRT(i)   _mm256_sqrt_ps(like_half(a, i))
#define LIKE_FMADD(i)  _mm256_fmadd_ps(like_half(a, i), like_half(b, i), like_half(c, i))
#define LIKE_FNMADD(i) _mm256_fnmadd_ps(like_half(a, i), like_half(b, i), like_half(c, i))
LIKE_HALVES(sqrt_ps, (__m512 a), LIKE_SQRT)
LIKE_HALVES(fmadd_ps, (__m512 a, __m512 b, __m512 c), LIKE_FMADD)
LIKE_HALVES(fnmadd_ps, (__m512 a, __m512 b, __m512 c), LIKE_FNMADD)

#define LIKE_TWO(name)                                                                             \
    LIKE __m512 like_##name(__m512 a, __m512 b)                                                    \
    {                                                                                              \
        return like_join(_mm256_##name(like_half(a, 0), like_half(b, 0)),                          \
                         _mm256_##name(like_half(a, 1), like_half(b, 1)));                         \
    }
LIKE_TWO(min_ps)
LIKE_TWO(max_ps)
LIKE_TWO(and_ps)
LIKE_TWO(andnot_ps)
LIKE_TWO(or_ps)
LIKE_TWO(unpacklo_ps)
LIKE_TWO(unpackhi_ps)

LIKE __m512d like_unpacklo_pd(__m512d a, __m512d b)
{
    return (__m512d) { a[0], b[0], a[2], b[2], a[4], b[4], a[6], b[6] };
}

LIKE __m512d like_unpackhi_pd(__m512d a, __m512d b)
{
    return (__m512d) { a[1], b[1], a[3], b[3], a[5], b[5], a[7], b[7] };
}

LIKE __m512  like_cvtepi32_ps(__m512i a) { return __builtin_convertvector((__v16si)a, __m512); }
LIKE __m512d like_cvtps_pd(__m256 a)     { return __builtin_convertvector(a, __m512d); }
LIKE __m512  like_set1_ps(float x) { return like_join(_mm256_set1_ps(x), _mm256_set1_ps(x)); }

/* ---- memory: what a mask leaves out is not touched ------------------------------------------- */

LIKE __m512 like_loadu_ps(const float *p)
{
    __m512 a;
    memcpy(&a, p, sizeof a);
    return a;
}

LIKE void like_storeu_ps(float *p, __m512 a) { memcpy(p, &a, sizeof a); }

LIKE __m512 like_maskz_loadu_ps(__mmask16 m, const float *p)
{
    __m512 a = like_set1_ps(0);
    for (int i = 0; i < 16; i++) {
        if (m >> i & 1) a[i] = p[i];
    }
    return a;
}

LIKE void like_mask_storeu_ps(float *p, __mmask16 m, __m512 a)
{
    for (int i = 0; i < 16; i++) {
        if (m >> i & 1) p[i] = a[i];
    }
}

/* ---- masks: a comparison gives a bit a number; one that is set chooses b --------------------- */

#define LIKE_CMP(a, b, how, i)                                                                     \
    _mm256_movemask_ps(_mm256_cmp_ps(like_half(a, i), like_half(b, i), how))
#define like_cmp_ps_mask(a, b, how)                                                                \
    ((__mmask16)(LIKE_CMP(a, b, how, 0) | LIKE_CMP(a, b, how, 1) << 8))

LIKE __m512 like_mask_blend_ps(__mmask16 m, __m512 a, __m512 b)
{
    const __v16si bit = { 1, 2, 4, 8, 1 << 4, 1 << 5, 1 << 6, 1 << 7, 1 << 8, 1 << 9, 1 << 10,
                          1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15 };
    const __v16si chosen = (bit & m) != 0;
    return (__m512)(((__v16si)b & chosen) | ((__v16si)a & ~chosen));
}

/* ---- quarters, of four numbers each; what is undefined is NaN -------------------------------- */

LIKE __m512 like_castps128_ps512(__m128 a)
{
    const __m256 nan = (__m256)_mm256_set1_epi32(-1);
    return like_join(_mm256_insertf128_ps(nan, a, 0), nan);
}

LIKE __m512 like_insertf32x4(__m512 a, __m128 b, int quarter)
{
    memcpy((__m128 *)&a + quarter, &b, sizeof b);
    return a;
}

LIKE __m128 like_extractf32x4_ps(__m512 a, int quarter)
{
    __m128 b;
    memcpy(&b, (__m128 *)&a + quarter, sizeof b);
    return b;
}

LIKE __m128 like_castps512_ps128(__m512 a) { return like_extractf32x4_ps(a, 0); }

/* Two quarters of a, then two of b, chosen by two bits each. */
LIKE __m512 like_shuffle_f32x4(__m512 a, __m512 b, int choice)
{
    __m512 result = a;
    for (int i = 0; i < 4; i++) {
        const __m128 quarter = like_extractf32x4_ps(i < 2 ? a : b, choice >> 2 * i & 3);
        result = like_insertf32x4(result, quarter, i);
    }
    return result;
}

#define like_setr_epi32(...) ((__m512i)(__v16si) { __VA_ARGS__ })

/* Number 16 + i is number i of b. */
LIKE __m512 like_permutex2var_ps(__m512 a, __m512i choice, __m512 b)
{
    __m512 result = a;
    for (int i = 0; i < 16; i++) {
        const int from = ((__v16si)choice)[i];
        result[i] = from & 16 ? b[from & 15] : a[from & 15];
    }
    return result;
}

#endif
