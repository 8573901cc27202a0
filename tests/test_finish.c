/* In evaluation a convolution does what follows it (4.6.3): the same bits as one operation after the
 * other, on every instruction set and for any number of workers; what it passed over can still be read,
 * and differentiated. In training it does not; with frozen statistics the numbers must be the same. */
#include "levels.h"

/* Rows and columns that fill no vector, blocks with several images or a piece of one, sums that are cut,
 * groups, columns that are not packed; Winograd's way with whole patches and parts, few and many. */
typedef struct shape { int n, c, h, w, o, kernel, stride, pad, groups; xg_winograd wish; } shape;
static const shape shapes[] = {
    { 1, 3, 1, 1, 5, 1, 1, 0, 1, XG_WINOGRAD_AUTO },    { 2, 5, 7, 7, 9, 1, 1, 0, 1, XG_WINOGRAD_AUTO },
    { 2, 20, 19, 13, 33, 1, 1, 0, 1, XG_WINOGRAD_AUTO }, { 3, 7, 15, 14, 12, 1, 2, 0, 1, XG_WINOGRAD_AUTO },
    { 2, 3, 21, 23, 17, 7, 2, 3, 1, XG_WINOGRAD_AUTO },  { 2, 3, 30, 9, 6, 3, 1, 1, 1, XG_WINOGRAD_AUTO },
    { 1, 700, 5, 4, 11, 1, 1, 0, 1, XG_WINOGRAD_AUTO },  { 2, 8, 9, 11, 12, 3, 1, 1, 4, XG_WINOGRAD_AUTO },
    { 1, 12, 40, 41, 40, 3, 2, 1, 1, XG_WINOGRAD_NEVER }, { 2, 3, 4, 5, 2, 3, 1, 1, 1, XG_WINOGRAD_ALWAYS },
    { 2, 33, 13, 18, 20, 3, 1, 1, 1, XG_WINOGRAD_ALWAYS }, { 1, 6, 8, 8, 65, 3, 1, 0, 1, XG_WINOGRAD_ALWAYS },
    { 2, 3, 70, 66, 17, 3, 1, 1, 1, XG_WINOGRAD_AUTO },  { 3, 20, 12, 10, 40, 3, 1, 1, 1, XG_WINOGRAD_NEVER },
    { 1, 1300, 4, 6, 11, 1, 1, 0, 1, XG_WINOGRAD_AUTO }, { 2, 8, 10, 12, 6, 3, 1, 1, 2, XG_WINOGRAD_NEVER },
    { 2, 5, 34, 66, 7, 3, 1, 1, 1, XG_WINOGRAD_ALWAYS }, { 9, 3, 16, 16, 5, 3, 1, 1, 1, XG_WINOGRAD_ALWAYS }
};
enum { SHAPES = (int)(sizeof shapes / sizeof *shapes), PARTS = 32 };

/* What follows is told by bits: a norm, a bias, a shortcut (which may be a convolution), ReLU, a max-pool
 * (in training behind numbers that are there). */
static xg_tensor *block(xg_scope *s, xg_tensor *x, const shape *k, int parts)
{
    const xg_norm_options frozen = { 0, 0, false, true, false };
    xg_conv_options conv;
    memset(&conv, 0, sizeof conv);
    conv.window.kh = conv.window.kw = k->kernel;
    conv.window.stride = k->stride;
    conv.window.pad = k->pad;
    conv.window.groups = k->groups;
    conv.bias = (parts & 3) == 2;
    xg_tensor *y = xg_conv(s, "conv", x, k->o, &conv);
    if (parts & 1) y = xg_batch_norm(s, "norm", y, &frozen);
    if (parts & 4) {
        xg_tensor *more = xg_conv(s, "shortcut", x, k->o, &conv);
        if (parts & 2) more = xg_batch_norm(s, "other", more, &frozen);
        y = parts & 1 ? xg_add(y, more) : xg_add(more, y);
    }
    if (parts & 8) y = xg_relu(y);
    if (!(parts & 16) || xg_shape_of(y).h < 2) return y;
    const xg_window pairs = { 2, 2, 2, 0, 1, 1 };
    if (s->train) xg_data(y);
    return xg_maxpool(y, pairs);
}

/* Numbers of weights and statistics that are far from what they start as. */
static void fill(xg_params *params)
{
    xg_rng rng = xg_rng_seed(5);
    for (int i = 0; i < xg_params_count(params); i++) {
        bool variance = strstr(xg_params_name(params, i), "running_var") != NULL;
        size_t size = xg_shape_size(xg_params_shape(params, i));
        for (size_t j = 0; j < size; j++) {
            double value = xg_rng_normal(&rng);
            xg_params_data(params, i)[j] = (xg_real)(variance ? value * value + 0.1 : value);
        }
    }
}

/* What a test does with the block of a case, on a store that belongs to it. */
typedef xg_tensor *(*answer)(xg_scope *s, xg_tensor *x, const shape *k, int parts);

static xg_tensor *with_params(xg_tape *t, int which, bool train, answer f, xg_params *params)
{
    const shape *k = &shapes[which / PARTS];
    xg_rng rng = xg_rng_seed(3);
    xg_scope s = xg_scope_new(t, params, &rng, train);
    xg_tensor *x = xg_name(randn(t, xg_shape4(k->n, k->c, k->h, k->w), &rng), "x");
    return f(&s, x, k, which % PARTS);
}

static xg_tape *tape_for(int which, const char *simd, int *workers)
{
    return level_tape(shapes[which / PARTS].wish, simd, workers);
}

/* A store with the weights of a case. */
static xg_params *weights_for(int which)
{
    xg_tape *t = tape_for(which, NULL, NULL);
    xg_params *params = xg_params_new(NULL);
    with_params(t, which, false, block, params);       /* makes them; nothing is computed */
    CHECK_OK(t);
    xg_tape_free(t);
    fill(params);
    return params;
}

/* f's numbers with a copy of those weights, to be freed. */
static xg_real *numbers_of(int which, bool train, answer f, const xg_params *weights, const char *simd,
                           int workers, size_t *count)
{
    xg_tape *t = tape_for(which, simd, &workers);
    xg_params *params = xg_params_clone(weights);
    xg_tensor *y = with_params(t, which, train, f, params);
    *count = xg_size(y);
    xg_real *out = (xg_real *)malloc(*count * sizeof *out);
    xg_read(y, out, *count);
    CHECK_OK(t);
    xg_tape_free(t);
    xg_params_free(params);
    return out;
}

/* Evaluation on every level, with some workers, against training on the scalar one. */
static void check_same(int which, answer f)
{
    size_t expected_count, count;
    xg_params *weights = weights_for(which);
    xg_real *expected = numbers_of(which, true, f, weights, "scalar", 1, &expected_count);
    for (int level = 0; level < xg_simd_count(); level++) {
        for (int workers = 1; workers < 4; workers += 2) {
            if (in_short_mode() && workers != 1 + (which + which / PARTS) % 2 * 2) continue;   /* by turns */
            xg_real *got = numbers_of(which, false, f, weights, xg_simd_name(level), workers, &count);
            size_t bad = 0;
            while (bad < count && same_number(got[bad], expected[bad])) bad++;
            if (bad < count || count != expected_count) {
                CHECK(!"finished numbers differ");
                printf("      shape %d, parts %d, %s, %d workers: number %d\n", which / PARTS,
                       which % PARTS, xg_simd_name(level), workers, (int)bad);
            }
            free(got);
        }
    }
    free(expected);
    xg_params_free(weights);
}

static void test_same_bits(void)
{
    const int step = in_short_mode() ? 5 : 1;          /* 5: still every shape and every part */
    for (int which = 0; which < SHAPES * PARTS; which += step) check_same(which, block);
}

/* The same in evaluation without gradients; behind it a max-pool whose windows overlap. */
static xg_tensor *constant_pool(xg_scope *s, xg_tensor *x, const shape *k, int parts)
{
    const xg_window overlapping = { 3, 2, 2, 1, 1, 1 };
    bool before = xg_no_grad(s->tape, !s->train);
    xg_tensor *y = xg_maxpool(block(s, x, k, parts), overlapping);
    CHECK(xg_no_grad(s->tape, before) == !s->train && !before);
    return y;
}

static void test_same_bits_without_places(void)
{
    for (int which = 1; which < SHAPES * PARTS; which += 3) {
        if (which & 16) check_same(which, constant_pool);          /* every shape, every part */
    }
}

/* The bytes of the tape once the block of a case has its numbers. */
static size_t bytes_of(int which, bool constant)
{
    xg_tape *t = tape_for(which, NULL, NULL);
    xg_params *params = xg_params_new(NULL);
    xg_no_grad(t, constant);
    xg_data(with_params(t, which, false, block, params));
    size_t bytes = xg_tape_stats(t).bytes;
    CHECK_OK(t);
    xg_tape_free(t);
    xg_params_free(params);
    return bytes;
}

/* A pool's places have as many numbers as its maxima, here a quarter of the convolution's. */
static void test_no_places(void)
{
    for (int i = 0; i < SHAPES; i++) {
        const shape *k = &shapes[i];
        size_t h = (size_t)((k->h + 2 * k->pad - k->kernel) / k->stride + 1);
        size_t w = (size_t)((k->w + 2 * k->pad - k->kernel) / k->stride + 1);
        size_t places = h < 2 ? 0 : (size_t)(k->n * k->o) * (h / 2) * (w / 2) * sizeof(xg_real);
        size_t without = bytes_of(i * PARTS + 26, true), with = bytes_of(i * PARTS + 26, false);
        CHECK(with >= without + places && with < without + places + 128);
    }
}

/* What no gradient was asked for is a constant: to losses made of it, and to products that outside are
 * asked for again. */
static void test_no_grad(void)
{
    xg_tape *t = tape_for(0, NULL, NULL);
    xg_rng rng = xg_rng_seed(1);
    const xg_shape s = xg_shape4(2, 3, 8, 8);
    const xg_window pairs = { 2, 2, 2, 0, 1, 1 }, around = { 3, 3, 1, 1, 1, 1 };
    xg_tensor *x = xg_randn(t, s, &rng), *w = xg_randn(t, xg_shape4(4, 3, 3, 3), &rng);

    xg_no_grad(t, true);
    xg_tensor *held = xg_maxpool(xg_conv2d(x, w, around), pairs);
    xg_no_grad(t, false);
    xg_tensor *open = xg_maxpool(xg_conv2d(x, w, around), pairs);
    xg_tensor *mixed = xg_grad(xg_mul(held, xg_square(open)), x);
    xg_tensor *expected = xg_grad(xg_mul(xg_detach(open), xg_square(open)), x);
    for (size_t i = 0; i < xg_size(x); i++) CHECK(xg_data(mixed)[i] == xg_data(expected)[i]);
    CHECK(xg_item(xg_sum(xg_abs(mixed))) > 0);
    CHECK(xg_item(xg_sum(xg_abs(xg_grad(xg_square(held), x)))) == 0);
    CHECK(xg_item(xg_grad(xg_square(held), held)) == 2 * xg_item(held));
    CHECK_OK(t);

    xg_grad(held, x);
    CHECK_ERROR(xg_tape_error(t), XG_ERR_ARGUMENT);
    CHECK(strstr(xg_tape_error(t)->text, "gather is a constant: it was made under xg_no_grad"));
    CHECK(!xg_no_grad(NULL, true));
    xg_tape_free(t);
}

/* A gradient that is itself made so is right, and leaves later ones differentiable. */
static void test_gradient_without_gradient(void)
{
    xg_tape *t = tape_for(0, NULL, NULL);
    xg_rng rng = xg_rng_seed(1);
    xg_tensor *x = xg_randn(t, xg_shape4(1, 2, 3, 4), &rng), *y = xg_dot(x, xg_square(x));
    xg_no_grad(t, true);
    xg_tensor *constant = xg_grad(y, x);
    xg_no_grad(t, false);
    xg_tensor *slope = xg_grad(y, x), *second = xg_grad(slope, x);
    for (size_t i = 0; i < xg_size(x); i++) {
        CHECK(xg_data(constant)[i] == xg_data(slope)[i]);
        CHECK_NEAR(xg_data(second)[i], 6 * xg_data(x)[i], 1e-5);
    }
    CHECK(xg_item(xg_sum(xg_abs(xg_grad(xg_square(constant), x)))) == 0);
    CHECK_OK(t);
    xg_tape_free(t);
}

/* A step on a loss that was made so says what is wrong and changes nothing. */
static void test_step_without_gradient(void)
{
    xg_tape *t = tape_for(0, NULL, NULL);
    xg_params *params = xg_params_new(NULL);
    xg_tensor *y = with_params(t, 9, true, block, params);
    xg_no_grad(t, true);
    xg_real before = xg_params_data(params, 0)[0];
    CHECK(xg_optim_step(NULL, params, xg_mean(y)) == XG_ERR_ARGUMENT);
    CHECK(xg_params_data(params, 0)[0] == before);
    xg_tape_free(t);
    xg_params_free(params);
}

/* The gradient of a gradient by x, with a path through ReLU. */
static xg_tensor *curvature(xg_scope *s, xg_tensor *x, const shape *k, int parts)
{
    xg_tensor *y = block(s, x, k, parts);
    return xg_grad(xg_mean(xg_square(xg_grad(xg_mean(xg_mul(y, xg_tanh(y))), x))), x);
}

static void test_same_derivatives(void)
{
    for (int which = 1; which < SHAPES * PARTS; which += 7) check_same(which, curvature);
}

/* How much is computed tells that the result alone was stored: ReLU's gradient asks for nothing more,
 * but reading what was passed over runs the convolution again, once. */
static void test_what_was_passed_over(void)
{
    xg_tape *t = tape_for(4 * PARTS, NULL, NULL);
    xg_params *params = weights_for(4 * PARTS + 9);
    xg_tensor *y = with_params(t, 4 * PARTS + 9, false, block, params);
    double before = xg_tape_stats(t).flops;
    xg_data(y);
    double once = xg_tape_stats(t).flops - before;
    CHECK(once > 0);
    xg_tensor *gate = xg_grad(xg_sum(y), xg_find(t, "conv"));
    xg_data(gate);
    CHECK(xg_tape_stats(t).flops == before + once);
    const xg_real *sum = xg_data(xg_find(t, "conv")), *norm = xg_data(xg_find(t, "norm"));
    CHECK(xg_tape_stats(t).flops == before + 2 * once);
    for (size_t i = 0; i < xg_size(y); i++) {
        CHECK(sum[i] == sum[i] && xg_data(y)[i] == (norm[i] > 0 ? norm[i] : 0));
    }
    CHECK_OK(t);
    xg_tape_free(t);
    xg_params_free(params);
}

/* One that two ask for is computed once. */
static void test_two_readers(void)
{
    xg_tape *t = tape_for(4 * PARTS, NULL, NULL);
    xg_params *params = weights_for(4 * PARTS + 9);
    xg_tensor *y = with_params(t, 4 * PARTS + 9, false, block, params);
    xg_rng rng = xg_rng_seed(3);
    xg_scope s = xg_scope_new(t, params, &rng, false);
    xg_tensor *twin = block(&s, xg_find(t, "x"), &shapes[4], 9);
    double before = xg_tape_stats(t).flops;
    xg_data(y);
    double once = xg_tape_stats(t).flops - before;
    CHECK(once > 0);
    for (size_t i = 0; i < xg_size(y); i++) CHECK(xg_data(twin)[i] == xg_data(y)[i]);
    CHECK(xg_tape_stats(t).flops == before + once);
    CHECK_OK(t);
    xg_tape_free(t);
    xg_params_free(params);
}

/* A convolution that waits has the weights of its own time. */
static void test_weights_that_change(void)
{
    xg_tape *t = tape_for(0, NULL, NULL);
    xg_rng rng = xg_rng_seed(1);
    xg_params *params = xg_params_new(NULL);
    const shape *k = &shapes[1];
    xg_scope s = xg_scope_new(t, params, &rng, false);
    xg_tensor *x = randn(t, xg_shape4(k->n, k->c, k->h, k->w), &rng);
    xg_tensor *other = xg_leaf(t, xg_shape_of(x), xg_data(x));     /* else both were one */
    xg_tensor *early = block(&s, x, k, 9);
    double before = xg_item(xg_sum(block(&s, other, k, 9)));
    xg_scope training = s;
    training.train = true;
    xg_optim sgd;
    memset(&sgd, 0, sizeof sgd);
    sgd.lr = 1;
    CHECK(xg_optim_step(&sgd, params, xg_mean(block(&training, other, k, 9))) == XG_ERR_OK);
    CHECK(xg_item(xg_sum(early)) == before);
    CHECK(xg_item(xg_sum(block(&s, x, k, 9))) != before);
    CHECK_OK(t);
    xg_tape_free(t);
    xg_params_free(params);
}

/* Memory that ends where the convolution runs, not where it was asked for: an error like any other. */
static void test_no_memory(void)
{
    static char room[1 << 16];
    for (size_t bytes = 4096; bytes <= sizeof room; bytes += 512) {
        xg_config config;
        memset(&config, 0, sizeof config);
        config.fixed = room;
        config.fixed_bytes = bytes;
        xg_tape *t = xg_tape_new(&config);
        xg_params *params = xg_params_new(NULL);
        xg_rng rng = xg_rng_seed(1);
        xg_scope s = xg_scope_new(t, params, &rng, false);
        xg_tensor *y = t ? block(&s, randn(t, xg_shape4(2, 5, 7, 7), &rng), &shapes[1], 13) : NULL;
        double value = t ? xg_item(xg_sum(y)) : 0;
        if (t && xg_failed(t)) {
            CHECK_ERROR(xg_tape_error(t), XG_ERR_MEMORY);
            CHECK(value != value);
        }
        xg_tape_free(t);
        xg_params_free(params);
    }
}

/* Four convolutions, one of the other, the last of which waits; what each reads is quickly made again. */
static xg_tensor *chain(xg_scope *s, xg_tensor *x, const xg_conv_options *conv, bool pinned)
{
    for (int i = 0; i < 4; i++) {
        char name[2] = { (char)('0' + i), 0 };
        if (pinned) xg_data(x);
        x = xg_affine(xg_conv(s, name, x, 4, conv), 0.5, 0.1);
    }
    return x;
}

/* The weight gradient of x, which was read three products ago, behind a max-pool. */
static xg_tensor *old_gradient(xg_tensor *x, xg_rng *rng, bool pinned)
{
    const xg_window around = { 3, 3, 1, 1, 1, 1 }, pairs = { 2, 2, 2, 0, 1, 1 };
    const xg_shape large = xg_shape4(1, 16, 64, 64), small = xg_shape4(1, 16, 32, 32);
    xg_tape *t = xg_tape_of(x);
    xg_tensor *w = xg_randn(t, xg_shape4(16, 4, 3, 3), rng);
    xg_tensor *at = xg_argpool(xg_randn(t, large, rng), pairs);
    xg_tensor *g = xg_scatter(xg_affine(xg_randn(t, small, rng), 2, 1), at, large);
    if (pinned) xg_data(x);
    xg_conv2d(x, w, around);
    for (int i = 0; i < 2; i++) {
        xg_conv2d(xg_affine(xg_randn(t, xg_shape_of(x), rng), 2, 1), w, around);
    }
    return xg_conv2d_dw(x, g, around, xg_shape_of(w));
}

/* To make an operand may drop another that was there: it is made again. */
static void test_operands_that_are_dropped(void)
{
    enum { MOST = 4 * 64 * 64, KINDS = 5 };
    static xg_real numbers[2][MOST];
    xg_conv_options conv;
    memset(&conv, 0, sizeof conv);
    conv.window.kh = conv.window.kw = 3;
    conv.window.pad = 1;
    for (int which = 0; which < 2 * KINDS; which++) {
        const bool pinned = which % 2 != 0;
        const xg_window around = { 3, 3, 1, 1, 1, 1 }, pairs = { 2, 2, 2, 0, 1, 1 };
        xg_tape *t = xg_tape_new(NULL);
        xg_params *params = xg_params_new(NULL);
        xg_rng rng = xg_rng_seed(1);
        xg_scope s = xg_scope_new(t, params, &rng, false);
        xg_tensor *x = xg_affine(xg_randn(t, xg_shape4(1, 4, 64, 64), &rng), 2, 1), *y = NULL;
        if (which / 2 < 4) y = chain(&s, x, &conv, pinned);
        if (which / 2 == 0) {
            xg_tensor *scale = xg_mean_to(y, xg_shape4(1, 4, 1, 1));
            y = xg_maxpool(xg_mul(xg_conv(&s, "last", x, 4, &conv), scale), pairs);
        }
        if (which / 2 == 1) y = xg_matmul(x, y, false, true);
        if (which / 2 == 2) y = xg_gather(x, xg_argpool(y, around));
        if (which / 2 == 3) y = xg_scatter(x, xg_argpool(y, around), xg_shape_of(x));
        if (which / 2 == 4) y = old_gradient(x, &rng, pinned);
        CHECK(xg_read(y, numbers[pinned], MOST) == xg_size(y) && xg_size(y) <= MOST);
        CHECK(!pinned || !memcmp(numbers[0], numbers[1], xg_size(y) * sizeof(xg_real)));
        CHECK_OK(t);
        xg_tape_free(t);
        xg_params_free(params);
    }
}

TEST_MAIN(
    TEST(test_same_bits)
    TEST(test_same_bits_without_places)
    TEST(test_no_places)
    TEST(test_no_grad)
    TEST(test_gradient_without_gradient)
    TEST(test_step_without_gradient)
    TEST(test_same_derivatives)
    TEST(test_what_was_passed_over)
    TEST(test_two_readers)
    TEST(test_weights_that_change)
    TEST(test_no_memory)
    TEST(test_operands_that_are_dropped)
)
