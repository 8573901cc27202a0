/* Every kernel gives the same bits on every instruction set of this machine and for any number of
 * workers; and vector maths is as accurate as its comment says. On a machine with the scalar level
 * only, the worker counts remain. */
#include "levels.h"

/* ---- pointwise --------------------------------------------------------------------------------- */

static xg_tensor *map_at(xg_tape *t, int which)
{
    xg_tensor *x = numbers(t, 1, 3, 5, 7, 11 + which % 5);
    switch (which) {
    case 0: return xg_exp(x);
    case 1: return xg_log(x);
    case 2: return xg_sqrt(x);
    case 3: return xg_pow(x, 2);
    case 4: return xg_pow(x, -0.5);
    case 5: return xg_pow(x, 3);
    case 6: return xg_pow(xg_abs(x), 1.7);
    case 7: return xg_sigmoid(x);
    case 8: return xg_tanh(x);
    case 9: return xg_softplus(x);
    case 10: return xg_abs(x);
    case 11: return xg_affine(x, 1.5, -0.25);
    case 12: return xg_relu(x);
    case 13: return xg_clamp(x, -0.5, 0.75);
    case 14: return xg_sign(x);
    case 15: return xg_step(x);
    case 16: return xg_pow(x, 5);
    case 17: return xg_pow(x, -3);
    case 18: return xg_pow(x, 6);
    default: return xg_grad(xg_clamp(x, -0.5, 0.75), x);
    }
}

static void test_maps(void)
{
    for (int which = 0; which <= 19; which++) check_levels("map", map_at, which);
}

/* Which of a's and b's axes are there: all 256 combinations are covered by test_ops; here the ones with
 * different inner loops. */
static xg_tensor *zip_at(xg_tape *t, int which)
{
    static const int shape[][8] = {
        { 2,3,5,19, 2,3,5,19 }, { 2,3,5,19, 1,3,1,1 }, { 1,3,1,1, 2,3,5,19 }, { 4,37,1,1, 1,37,1,1 },
        { 2,3,5,1, 2,3,1,19 }, { 1,1,1,1, 2,3,5,7 }, { 3,2000,1,1, 3,1,1,1 }
    };
    const int *s = shape[which / 8];
    xg_tensor *a = numbers(t, 2, s[0], s[1], s[2], s[3]), *b = numbers(t, 3, s[4], s[5], s[6], s[7]);
    switch (which % 8) {
    case 0: return xg_add(a, b);
    case 1: return xg_sub(a, b);
    case 2: return xg_mul(a, b);
    case 3: return xg_div(a, b);
    case 4: return xg_max(a, b);
    case 5: return xg_min(a, b);
    case 6: return xg_less(a, b);
    default: return xg_gate(a, b);
    }
}

static void test_zips(void)
{
    for (int which = 0; which < 56; which++) check_levels("zip", zip_at, which);
}

/* An expression of many operations at once, longer than what is computed in one go. */
static xg_tensor *chain_at(xg_tape *t, int which)
{
    xg_rng rng = xg_rng_seed(4);
    xg_tensor *x = randn(t, xg_shape4(2, 6, 13, 90 + which), &rng);
    xg_tensor *scale = randn(t, xg_shape4(1, 6, 1, 1), &rng), *y = x;
    for (int i = 0; i < 10 + which; i++) {
        y = i % 3 == 0 ? xg_mul(y, scale) : i % 3 == 1 ? xg_add(y, x) : xg_relu(xg_sub(y, scale));
        if (i == 7) y = xg_tanh(y);
    }
    return which % 2 ? y : xg_sum_to(y, xg_shape4(which % 4 ? 2 : 1, 6, 1, 1));
}

static void test_chains(void)
{
    for (int which = 0; which < 12; which++) check_levels("chain", chain_at, which);
}

/* ---- sums -------------------------------------------------------------------------------------- */

static xg_tensor *sum_at(xg_tape *t, int which)
{
    static const int shape[][4] = { { 3,5,7,11 }, { 2,64,9,9 }, { 33,70,1,1 }, { 1,1,1,4099 }, { 2,3,40,50 } };
    const int *e = shape[which / 16];
    xg_rng rng = xg_rng_seed(5);
    xg_tensor *x = randn(t, xg_shape4(e[0], e[1], e[2], e[3]), &rng);
    int keep = which % 16;
    return xg_sum_to(x, xg_shape4(keep & 1 ? e[0] : 1, keep & 2 ? e[1] : 1, keep & 4 ? e[2] : 1,
                                  keep & 8 ? e[3] : 1));
}

static void test_sums(void)
{
    for (int which = 0; which < 80; which++) check_levels("sum", sum_at, which);
}

/* ---- products ---------------------------------------------------------------------------------- */

static xg_tensor *matmul_at(xg_tape *t, int which)
{
    static const int size[][3] = { {1,1,1}, {3,5,7}, {17,33,65}, {64,49,300}, {256,10,100}, {16,128,600},
                                   {130,97,289}, {13,725,300}, {70,470,33} };
    const int *s = size[which / 4];
    xg_rng rng = xg_rng_seed(6);
    bool ta = which & 1, tb = which & 2;
    xg_tensor *a = randn(t, xg_shape4(1, 1, ta ? s[2] : s[0], ta ? s[0] : s[2]), &rng);
    xg_tensor *b = randn(t, xg_shape4(1, 1, tb ? s[1] : s[2], tb ? s[2] : s[1]), &rng);
    return xg_matmul(a, b, ta, tb);
}

static void test_matmul(void)
{
    for (int which = 0; which < 36; which++) check_levels("matmul", matmul_at, which);
}

static xg_tensor *conv_at(xg_tape *t, int which)
{
    /* n, c, h, w, o, kernel, stride, pad, dilation, groups */
    static const int shape[][10] = {
        { 1,3,17,19, 8,7,2,3,1,1 }, { 2,16,14,14, 33,3,1,1,1,1 }, { 3,32,7,7, 40,3,1,1,1,1 },
        { 2,24,9,11, 20,1,1,0,1,1 }, { 2,24,9,11, 20,1,2,0,1,1 }, { 2,12,13,10, 12,3,2,1,1,12 },
        { 1,8,15,15, 12,3,1,2,2,4 }, { 1,70,5,5, 9,5,3,2,1,1 }, { 5,3,8,8, 4,2,2,0,1,1 },
        { 1,20,28,28, 65,3,1,1,1,1 },
        { 2,40,13,18, 24,3,2,1,1,2 }, { 2,36,20,37, 10,3,2,1,2,1 }, { 2,17,30,33, 50,5,1,2,1,1 },
        { 1,18,40,77, 16,3,2,1,1,1 }, { 20,32,4,4, 48,3,1,1,1,1 }, { 9,48,11,9, 21,1,2,0,1,1 },
        { 1,70,5,6, 330,3,1,1,1,1 }, { 2,50,7,5, 400,3,2,1,1,2 }, { 1,600,3,3, 90,1,1,0,1,1 },
        { 3,37,9,11, 37,5,2,3,1,37 }, { 2,19,20,17, 19,3,1,2,2,19 }
    };
    const int *s = shape[which / 3];
    xg_rng rng = xg_rng_seed(8);
    xg_window k = { 0, 0, s[6], s[7], s[8], s[9] };
    xg_shape xs = xg_shape4(s[0], s[1], s[2], s[3]), ws = xg_shape4(s[4], s[1] / s[9], s[5], s[5]);
    xg_tensor *x = randn(t, xs, &rng), *w = randn(t, ws, &rng);
    xg_tensor *y = xg_conv2d(x, w, k);
    if (which % 3 == 0) return y;
    xg_tensor *g = randn(t, xg_shape_of(y), &rng);
    return which % 3 == 1 ? xg_conv2d_dx(w, g, k, xs) : xg_conv2d_dw(x, g, k, ws);
}

static void test_convolutions(void)
{
    for (int which = 0; which < 63; which++) check_levels("conv", conv_at, which);
}

/* ---- accuracy ---------------------------------------------------------------------------------- */

/* Distance in units of the last place of the exact result, as a number of this build. */
static double ulps(double got, double exact)
{
    int exponent;
    if (same_number((xg_real)got, (xg_real)exact)) return 0;
    frexp(exact, &exponent);
    int digits = IS_DOUBLE ? 53 : 24, lowest = IS_DOUBLE ? -1021 : -125;
    return fabs(got - exact) / ldexp(1, (exponent > lowest ? exponent : lowest) - digits);
}

static double exact_softplus(double x) { return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x)); }
static double exact_sigmoid(double x) { return 1 / (1 + exp(-x)); }

static void test_accuracy_of_vector_maths(void)
{
    static const struct { xg_tensor *(*f)(xg_tensor *); double (*exact)(double); double lo, hi, most; } cases[] = {
        { xg_exp, exp, -87, 88, 2 }, { xg_log, log, 1e-30, 1e30, 2 }, { xg_sqrt, sqrt, 0, 1e30, 0.51 },
        { xg_tanh, tanh, -12, 12, 3 }, { xg_sigmoid, exact_sigmoid, -80, 80, 4 },
        { xg_softplus, exact_softplus, -80, 80, 4 }
    };
    xg_rng rng = xg_rng_seed(9);
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        xg_tape *t = xg_tape_new(NULL);
        xg_tensor *x = xg_leaf(t, xg_shape4(1, 1, 1, 40000), NULL);
        for (size_t i = 0; i < xg_size(x); i++) {
            double u = xg_rng_uniform(&rng), v;
            if (cases[k].lo > 0) v = cases[k].lo * pow(cases[k].hi / cases[k].lo, u);
            else v = i % 2 ? cases[k].lo + (cases[k].hi - cases[k].lo) * u : cases[k].hi * pow(1e-12, u);
            xg_leaf_data(x)[i] = (xg_real)v;
        }
        const xg_real *y = xg_data(cases[k].f(x));
        double most = 0;
        for (size_t i = 0; i < xg_size(x); i++) {
            most = fmax(most, ulps((double)y[i], cases[k].exact((double)xg_data(x)[i])));
        }
        printf("  accuracy of function %d: %.2f ulp\n", (int)k, most);
        CHECK(most <= cases[k].most);
        xg_tape_free(t);
    }
}

/* Powers, where numbers end and, if the exponent is whole, of negative ones: as pow() has them, as far
 * as 3.2 promises. */
static void test_powers(void)
{
#ifdef __wasm__
    const double most = 65;
#else
    const double most = 2;
#endif
    static const double exponents[] = { -7, -3, -2.5, -2, -1, -0.5, 0.5, 1.5, 2, 2.5, 3, 5, 6, 7 };
    for (size_t k = 0; k < sizeof exponents / sizeof *exponents; k++) {
        xg_tape *t = xg_tape_new(NULL);
        xg_rng rng = xg_rng_seed(10);
        xg_tensor *x = xg_leaf(t, xg_shape4(1, 1, 1, 1000), NULL);
        for (size_t i = 0; i < 1000; i++) {
            double value = (xg_rng_uniform(&rng) - 0.5) * (i % 2 ? 8 : 200);
            xg_leaf_data(x)[i] = (xg_real)(i < SPECIALS ? special[i] : i == SPECIALS ? (double)NAN : value);
        }
        const xg_real *y = xg_data(xg_pow(x, exponents[k]));
        for (size_t i = 0; i < 1000; i++) {
            double from = (double)xg_data(x)[i], exact = pow(from, exponents[k]), got = (double)y[i];
            if (signbit(from) && floor(exponents[k]) != exponents[k]) continue;
            bool right = ulps(got, exact) <= most && (got != 0 || !signbit(got) == !signbit(exact));
            if (!right) printf("      %g^%g: %g, not %g\n", from, exponents[k], got, exact);
            CHECK(right);
        }
        xg_tape_free(t);
    }
}

/* Exponents so huge that nearly all powers are 0 or infinite; and what is no exponent. */
static void test_huge_powers(void)
{
    static const double exponents[] = { 1500, -3e4, 1e7 + 1, 3e7, -3e7, 1e30, -3e38, NAN };
    for (size_t k = 0; k < sizeof exponents / sizeof *exponents; k++) {
        xg_tape *t = xg_tape_new(NULL);
        xg_rng rng = xg_rng_seed(11);
        xg_tensor *x = xg_leaf(t, xg_shape4(1, 1, 1, 4000), NULL);
        for (size_t i = 0; i < 4000; i++) xg_leaf_data(x)[i] = (xg_real)(8 * xg_rng_uniform(&rng));
        xg_leaf_data(x)[0] = 0;
        xg_leaf_data(x)[1] = (xg_real)HUGE_VAL;
        const xg_real *y = xg_data(xg_pow(x, exponents[k]));
        for (size_t i = 0; i < 4000; i++) {
            xg_real exact = (xg_real)pow((double)xg_data(x)[i], (double)(xg_real)exponents[k]);
            bool ends = exact == 0 || exact - exact != 0;
            if (ends) CHECK(same_number(y[i], exact));
        }
        xg_tape_free(t);
    }
}

TEST_MAIN(
    TEST(test_maps)
    TEST(test_zips)
    TEST(test_chains)
    TEST(test_sums)
    TEST(test_matmul)
    TEST(test_convolutions)
    TEST(test_accuracy_of_vector_maths)
    TEST(test_powers)
    TEST(test_huge_powers)
)
