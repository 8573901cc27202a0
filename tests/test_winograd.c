/* Winograd's algorithm: near the definition, however odd the shape; the same bits on every instruction
 * set and for any number of workers; taken where the option says; differentiable to any order. */
#include "levels.h"

typedef struct shape { int n, c, h, w, o, pad; } shape;
typedef enum kind { FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT, KINDS } kind;

/* Borders of every kind: extents that are no multiple of 4, maps smaller than a patch, planes that fill
 * no vector; few patches with many planes and the reverse; sums longer than a block. */
static const shape shapes[] = {
    { 1, 1, 1, 1, 1, 1 }, { 1, 1, 1, 1, 1, 2 }, { 2, 3, 2, 3, 5, 1 }, { 2, 3, 2, 3, 5, 2 },
    { 1, 2, 3, 3, 2, 0 }, { 3, 4, 4, 4, 6, 0 }, { 1, 5, 5, 9, 7, 0 }, { 2, 7, 6, 6, 3, 1 },
    { 5, 17, 7, 7, 19, 1 }, { 4, 33, 7, 5, 40, 2 }, { 1, 6, 13, 50, 9, 1 }, { 1, 3, 3, 420, 4, 1 },
    { 3, 16, 14, 14, 24, 1 }, { 2, 12, 29, 31, 25, 0 }, { 2, 70, 8, 8, 65, 1 }, { 1, 300, 5, 6, 310, 1 },
    { 1, 9, 31, 30, 8, 2 }, { 5, 1, 28, 28, 13, 1 }, { 2, 48, 4, 4, 200, 1 }, { 3, 600, 4, 3, 7, 1 },
    { 3, 3, 30, 34, 17, 1 }, { 2, 4, 37, 33, 9, 2 }, { 2, 2, 26, 41, 8, 0 }, { 2, 17, 30, 34, 3, 1 }
};
enum { SHAPES = (int)(sizeof shapes / sizeof *shapes) };

static xg_window window_of(const shape *s)
{
    xg_window k = { 0, 0, 1, 0, 1, 1 };
    k.pad = s->pad;
    return k;
}

typedef struct trio { xg_tensor *x, *w, *g; } trio;

static trio operands(xg_tape *t, const shape *s)
{
    xg_rng rng = xg_rng_seed(7);
    trio v;
    v.x = randn(t, xg_shape4(s->n, s->c, s->h, s->w), &rng);
    v.w = randn(t, xg_shape4(s->o, s->c, 3, 3), &rng);
    v.g = randn(t, xg_shape4(s->n, s->o, s->h + 2 * s->pad - 2, s->w + 2 * s->pad - 2), &rng);
    return v;
}

static xg_tensor *compute(kind what, const trio *v, const shape *s)
{
    if (what == FORWARD) return xg_conv2d(v->x, v->w, window_of(s));
    if (what == INPUT_GRADIENT) return xg_conv2d_dx(v->w, v->g, window_of(s), xg_shape_of(v->x));
    return xg_conv2d_dw(v->x, v->g, window_of(s), xg_shape_of(v->w));
}

/* The definition, in double: every product of x, w and g goes where it belongs. */
static double *definition(kind what, const trio *v, const shape *s, size_t count)
{
    double *y = (double *)calloc(count, sizeof *y);
    const xg_real *x = xg_data(v->x), *w = xg_data(v->w), *g = xg_data(v->g);
    int oh = s->h + 2 * s->pad - 2, ow = s->w + 2 * s->pad - 2;
    for (int n = 0; n < s->n; n++)
    for (int o = 0; o < s->o; o++)
    for (int c = 0; c < s->c; c++)
    for (int tap = 0; tap < 9; tap++)
    for (int gy = 0; gy < oh; gy++) {
        int iy = gy + tap / 3 - s->pad, shift = tap % 3 - s->pad;
        if (iy < 0 || iy >= s->h) continue;
        int begin = shift < 0 ? -shift : 0, end = s->w - shift < ow ? s->w - shift : ow;
        size_t line_g = ((size_t)(n * s->o + o) * (size_t)oh + (size_t)gy) * (size_t)ow;
        size_t line_x = ((size_t)(n * s->c + c) * (size_t)s->h + (size_t)iy) * (size_t)s->w;
        size_t at_w = (size_t)(o * s->c + c) * 9 + (size_t)tap;
        for (int gx = begin; gx < end; gx++) {
            size_t at_g = line_g + (size_t)gx, at_x = line_x + (size_t)(gx + shift);
            if (what == FORWARD) y[at_g] += (double)x[at_x] * (double)w[at_w];
            if (what == INPUT_GRADIENT) y[at_x] += (double)g[at_g] * (double)w[at_w];
            if (what == WEIGHT_GRADIENT) y[at_w] += (double)x[at_x] * (double)g[at_g];
        }
    }
    return y;
}

/* How far y is from the definition, against the root mean square of the latter: the root mean square of
 * the difference, and its maximum. */
static void distance(xg_tensor *y, const double *exact, double *mean, double *most)
{
    double norm = 0, sum = 0, max = 0;
    for (size_t i = 0; i < xg_size(y); i++) {
        double error = (double)xg_data(y)[i] - exact[i];
        norm += exact[i] * exact[i];
        sum += error * error;
        if (!(fabs(error) <= max)) max = fabs(error);
    }
    *mean = sqrt(sum / norm);
    *most = max / sqrt(norm / (double)xg_size(y));
}

static void test_against_the_definition(void)
{
    double worst_mean = 0, worst_most = 0, mean, most;
    for (int i = 0; i < SHAPES * KINDS; i++) {
        const shape *s = &shapes[i / KINDS];
        kind what = (kind)(i % KINDS);
        xg_tape *t = level_tape(XG_WINOGRAD_ALWAYS, NULL, NULL);
        trio v = operands(t, s);
        xg_tensor *y = compute(what, &v, s);
        double *exact = definition(what, &v, s, xg_size(y));
        distance(y, exact, &mean, &most);
        CHECK_OK(t);
        CHECK(xg_tape_stats(t).winograd == 1);
        CHECK(mean < TOL(3e-6, 6e-15) && most < TOL(3e-5, 6e-14));
        if (!(mean < TOL(3e-6, 6e-15) && most < TOL(3e-5, 6e-14))) {
            printf("      shape %d, kind %d: %.3g, worst %.3g\n", i / KINDS, what, mean, most);
        }
        worst_mean = fmax(worst_mean, mean);
        worst_most = fmax(worst_most, most);
        free(exact);
        xg_tape_free(t);
    }
    printf("  error: %.2g of the norm, single numbers %.2g\n", worst_mean, worst_most);
}

/* What the head comment of 3.6 states. */
static void test_stated_accuracy(void)
{
    static const shape sizes[] = { { 4, 64, 28, 28, 16, 1 }, { 2, 512, 8, 8, 16, 1 }, { 64, 16, 28, 28, 16, 1 } };
    static const char *const names[] = { "forward", "input gradient", "weight gradient" };
    for (int i = 0; i < 3 * KINDS; i++) {
        const shape *s = &sizes[i / KINDS];
        double mean[2], most[2], *exact = NULL;
        for (int direct = 0; direct < 2; direct++) {
            xg_tape *t = level_tape(direct ? XG_WINOGRAD_NEVER : XG_WINOGRAD_ALWAYS, NULL, NULL);
            trio v = operands(t, s);
            xg_tensor *y = compute((kind)(i % KINDS), &v, s);
            if (!exact) exact = definition((kind)(i % KINDS), &v, s, xg_size(y));    /* of both ways */
            distance(y, exact, &mean[direct], &most[direct]);
            xg_tape_free(t);
        }
        free(exact);
        printf("  %3d planes, %5d patches, %-15s: %.1e of the norm, at most %.1e; direct %.1e, %.1e\n",
               s->c, s->n * ((s->h + 3) / 4) * ((s->w + 3) / 4), names[i % KINDS], mean[0], most[0],
               mean[1], most[1]);
        CHECK(mean[0] < TOL(2e-6, 1e-14) && most[0] < TOL(2e-5, 1e-13));
    }
}

static bool same_bits(const xg_real *a, const xg_real *b, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (memcmp(&a[i], &b[i], sizeof *a) != 0 && (a[i] == a[i] || b[i] == b[i])) return false;
    }
    return true;
}

/* The values of one of the trio, to be freed. */
static xg_real *results(kind what, const shape *s, xg_winograd wish, const char *simd, int workers,
                        size_t *count)
{
    xg_tape *t = level_tape(wish, simd, &workers);
    trio v = operands(t, s);
    xg_tensor *y = compute(what, &v, s);
    *count = xg_size(y);
    xg_real *out = (xg_real *)malloc(*count * sizeof *out);
    xg_read(y, out, *count);
    CHECK_OK(t);
    xg_tape_free(t);
    return out;
}

static void test_same_bits_everywhere(void)
{
    size_t count, again;
    for (int i = 0; i < SHAPES * KINDS; i++) {
        const shape *s = &shapes[i / KINDS];
        kind what = (kind)(i % KINDS);
        xg_real *expected = results(what, s, XG_WINOGRAD_ALWAYS, "scalar", 1, &count);
        for (int level = 0; level < xg_simd_count(); level++) {
            for (int workers = 1; workers <= 4; workers++) {
                if (!compared(xg_simd_name(level), workers)) continue;
                xg_real *got = results(what, s, XG_WINOGRAD_ALWAYS, xg_simd_name(level), workers, &again);
                bool same = again == count && same_bits(got, expected, count);
                CHECK(same);
                if (!same) printf("      %s, %d workers, case %d\n", xg_simd_name(level), workers, i);
                free(got);
            }
        }
        free(expected);
    }
}

/* How many convolutions of one call went Winograd's way. */
static size_t taken(const shape *s, kind what, xg_winograd wish)
{
    xg_tape *t = level_tape(wish, NULL, NULL);
    trio v = operands(t, s);
    xg_data(compute(what, &v, s));
    CHECK_OK(t);
    size_t count = xg_tape_stats(t).winograd;
    CHECK_NEAR(xg_tape_stats(t).flops, 18.0 * s->c * (double)xg_size(v.g), 1e-12);
    xg_tape_free(t);
    return count;
}

static void test_choice(void)
{
    static const shape large = { 8, 64, 28, 28, 64, 1 }, small = { 1, 3, 5, 5, 4, 1 };
    for (int what = 0; what < KINDS; what++) {
        CHECK(taken(&large, (kind)what, XG_WINOGRAD_NEVER) == 0);
        CHECK(taken(&large, (kind)what, XG_WINOGRAD_AUTO) == (IS_DOUBLE ? 0 : 1));
        CHECK(taken(&small, (kind)what, XG_WINOGRAD_AUTO) == 0);
        CHECK(taken(&small, (kind)what, XG_WINOGRAD_ALWAYS) == 1);
    }
    size_t count, again;
    xg_real *a = results(FORWARD, &small, XG_WINOGRAD_AUTO, NULL, 1, &count);
    xg_real *b = results(FORWARD, &small, XG_WINOGRAD_NEVER, NULL, 1, &again);
    CHECK(count == again && same_bits(a, b, count));
    free(a);
    free(b);
}

/* Few planes in: enough patches and planes out are needed, and no gradient is meant. */
static void test_choice_of_few_planes(void)
{
    static const shape few[] = { { 4, 3, 64, 64, 8, 1 }, { 4, 4, 64, 64, 16, 1 } };
    static const shape rest[] = { { 4, 1, 64, 64, 16, 1 }, { 4, 3, 64, 64, 7, 1 }, { 3, 3, 64, 64, 16, 1 } };
    for (int i = 0; i < 2; i++) {
        CHECK(taken(&few[i], FORWARD, XG_WINOGRAD_AUTO) == (IS_DOUBLE ? 0 : 1));
        CHECK(taken(&few[i], FORWARD, XG_WINOGRAD_NEVER) == 0);
        CHECK(taken(&few[i], INPUT_GRADIENT, XG_WINOGRAD_AUTO) == 0);
        CHECK(taken(&few[i], WEIGHT_GRADIENT, XG_WINOGRAD_AUTO) == 0);
    }
    for (int i = 0; i < 3; i++) CHECK(taken(&rest[i], FORWARD, XG_WINOGRAD_AUTO) == 0);
}

/* The first layer of a small network: chosen by itself, with ReLU and max-pool behind it. One after
 * the other, together, or with nobody to ask where the maxima stand. */
enum { APART, TOGETHER, NO_GRAD, FIRST_LAYERS };

static xg_tensor *first_layer(xg_tape *t, int which)
{
    static const shape s = { 4, 3, 66, 62, 17, 1 };
    const xg_window pairs = { 2, 2, 2, 0, 1, 1 };
    trio v = operands(t, &s);
    xg_no_grad(t, which == NO_GRAD);
    xg_tensor *y = xg_conv2d(v.x, v.w, window_of(&s));
    if (which == APART) xg_data(y);
    xg_tensor *pooled = xg_maxpool(xg_relu(y), pairs);
    xg_data(pooled);
    xg_no_grad(t, false);
    return pooled;
}

static void test_few_planes_and_a_pool(void)
{
    xg_tape *t = level_tape(XG_WINOGRAD_AUTO, NULL, NULL);
    xg_tensor *apart = first_layer(t, APART);
    for (int which = TOGETHER; which < FIRST_LAYERS; which++) {
        CHECK(same_bits(xg_data(first_layer(t, which)), xg_data(apart), xg_size(apart)));
    }
    CHECK(xg_tape_stats(t).winograd == (IS_DOUBLE ? 0 : FIRST_LAYERS));
    CHECK_OK(t);
    xg_tape_free(t);
    for (int which = 0; which < FIRST_LAYERS; which++) check_levels("few planes", first_layer, which);
}

/* Windows that it is not made for take the direct way, whatever the option says. */
static void test_other_windows(void)
{
    static const int other[][6] = {      /* kh, kw, stride, pad, dilation, groups */
        { 3, 3, 2, 1, 1, 1 }, { 3, 3, 1, 1, 2, 1 }, { 3, 3, 1, 1, 1, 2 }, { 3, 3, 1, 3, 1, 1 },
        { 1, 3, 1, 0, 1, 1 }, { 5, 5, 1, 2, 1, 1 }, { 1, 1, 1, 0, 1, 1 }
    };
    for (size_t i = 0; i < sizeof other / sizeof *other; i++) {
        const int *k = other[i];
        xg_window window = { 0, 0, k[2], k[3], k[4], k[5] };
        xg_tape *t = level_tape(XG_WINOGRAD_ALWAYS, NULL, NULL);
        xg_rng rng = xg_rng_seed(3);
        xg_tensor *x = randn(t, xg_shape4(2, 4, 11, 11), &rng);
        xg_tensor *w = randn(t, xg_shape4(6, 4 / k[5], k[0], k[1]), &rng);
        xg_data(xg_grad(xg_conv2d(x, w, window), w));
        CHECK_OK(t);
        CHECK(xg_tape_stats(t).winograd == 0);
        xg_tape_free(t);
    }
}

/* A number that is none spoils the patches that see it, and no others. */
static void test_not_a_number_stays_near(void)
{
    static const shape s = { 2, 5, 20, 20, 7, 1 };
    xg_tape *t = level_tape(XG_WINOGRAD_ALWAYS, NULL, NULL);
    trio v = operands(t, &s);
    xg_leaf_data(v.x)[(5 + 2) * 400 + 9 * 20 + 9] = (xg_real)NAN;      /* image 1, row 9, pixel 9 */
    xg_leaf_data(v.x)[0] = (xg_real)HUGE_VAL;                          /* image 0, a corner */
    const xg_real *y = xg_data(compute(FORWARD, &v, &s));
    for (int i = 0; i < 2 * 7 * 400; i++) {
        int image = i / 2800, row = i % 400 / 20, column = i % 20;
        int from = image ? 8 : 0, near = image ? 10 : 1, far = image ? 11 : 3;
        bool seen = row >= from && row <= near && column >= from && column <= near;
        bool patch = row >= from && row <= far && column >= from && column <= far;
        if (seen) CHECK(!(fabs((double)y[i]) < 1e30));
        if (!patch) CHECK(fabs((double)y[i]) < 1e30);
    }
    CHECK_OK(t);
    xg_tape_free(t);
}

/* A function whose derivatives hold all three of the trio. */
static xg_tensor *curved(xg_tensor *const *in, int count, void *user)
{
    const xg_window k = { 0, 0, 1, 1, 1, 1 };
    (void)count;
    (void)user;
    xg_tensor *y = xg_conv2d(xg_tanh(in[0]), in[1], k);
    return xg_mul(y, xg_conv2d_dx(in[1], y, k, xg_shape_of(in[0])));
}

static void test_third_derivatives(void)
{
    xg_tape *t = level_tape(XG_WINOGRAD_ALWAYS, NULL, NULL);
    xg_rng rng = xg_rng_seed(11);
    xg_tensor *in[2];
    in[0] = randn(t, xg_shape4(2, 3, 6, 5), &rng);
    in[1] = xg_affine(randn(t, xg_shape4(3, 3, 3, 3), &rng), 0.3, 0);
    in[1] = xg_leaf(t, xg_shape_of(in[1]), xg_data(in[1]));
    double error = xg_gradcheck(curved, NULL, in, 2, IS_DOUBLE ? 3 : 1, IS_DOUBLE ? 1e-5 : 2e-3, &rng);
    printf("  derivatives: %.2g\n", error);
    CHECK_OK(t);
    CHECK(xg_tape_stats(t).winograd > 10);
    CHECK(error < TOL(2e-2, 1e-7));
    xg_tape_free(t);
}

TEST_MAIN(
    TEST(test_against_the_definition)
    TEST(test_stated_accuracy)
    TEST(test_same_bits_everywhere)
    TEST(test_choice)
    TEST(test_choice_of_few_planes)
    TEST(test_few_planes_and_a_pool)
    TEST(test_other_windows)
    TEST(test_not_a_number_stays_near)
    TEST(test_third_derivatives)
)
