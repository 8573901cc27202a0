/* test_models.c - the parameter store, layers, networks and optimisers, against plain loops, hand
 * computed updates, published counts, and answers known in advance. */
#include "test.h"
#include <time.h>

/* What every test here needs. */
typedef struct bench {
    xg_tape   *tape;
    xg_params *params;
    xg_rng     rng;
    xg_scope   s;
} bench;

static void bench_open(bench *b, bool train)
{
    b->tape = xg_tape_new(NULL);
    b->params = xg_params_new(NULL);
    REQUIRE(b->tape && b->params);
    b->rng = xg_rng_seed(7);
    b->s = xg_scope_new(b->tape, b->params, &b->rng, train);
}

static void bench_close(bench *b)
{
    xg_tape_free(b->tape);
    xg_params_free(b->params);
}

static xg_real *values(xg_params *params, const char *name)
{
    int i = xg_params_find(params, name);
    if (i < 0) printf("  no parameter %s\n", name);
    REQUIRE(i >= 0);
    return xg_params_data(params, i);
}

static void set(xg_params *params, const char *name, const double *from)
{
    xg_real *to = values(params, name);
    size_t size = xg_shape_size(xg_params_shape(params, xg_params_find(params, name)));
    for (size_t i = 0; i < size; i++) to[i] = (xg_real)from[i];
}

/* Gives every parameter of that ending random values, so that nothing is 0 or 1 by default. */
static void scatter_values(bench *b, const char *ending, double lo, double hi)
{
    for (int i = 0; i < xg_params_count(b->params); i++) {
        const char *name = xg_params_name(b->params, i);
        size_t length = strlen(name), tail = strlen(ending);
        if (length < tail || strcmp(name + length - tail, ending)) continue;
        xg_real *w = xg_params_data(b->params, i);
        size_t size = xg_shape_size(xg_params_shape(b->params, i));
        for (size_t j = 0; j < size; j++) {
            w[j] = (xg_real)(lo + (hi - lo) * xg_rng_uniform(&b->rng));
        }
    }
}

/* A copy of all numbers of a store, to see whether anything moved. */
static xg_real *snapshot(xg_params *params, size_t *count)
{
    size_t total = 0, at = 0;
    for (int i = 0; i < xg_params_count(params); i++) {
        total += xg_shape_size(xg_params_shape(params, i));
    }
    xg_real *copy = (xg_real *)malloc((total + 1) * sizeof *copy);
    REQUIRE(copy != NULL);
    for (int i = 0; i < xg_params_count(params); i++) {
        size_t size = xg_shape_size(xg_params_shape(params, i));
        memcpy(copy + at, xg_params_data(params, i), size * sizeof *copy);
        at += size;
    }
    *count = total;
    return copy;
}

static bool unmoved(xg_params *params, const xg_real *before, size_t count)
{
    size_t now_count;
    xg_real *now = snapshot(params, &now_count);
    bool same = now_count == count && !memcmp(now, before, count * sizeof *now);
    free(now);
    return same;
}

static xg_shape sh(int n, int c, int h, int w) { return xg_shape4(n, c, h, w); }

static xg_window window(int kernel, int stride, int pad, int groups)
{
    xg_window k;
    memset(&k, 0, sizeof k);
    k.kh = k.kw = kernel;
    k.stride = stride;
    k.pad = pad;
    k.groups = groups;
    return k;
}

/* ---- 7.1 the store -------------------------------------------------------------------------- */

static void test_store_adds_and_finds(void)
{
    xg_params *p = xg_params_new(NULL);
    REQUIRE(p != NULL);
    CHECK(xg_params_count(p) == 0 && xg_params_find(p, "w") == -1);
    for (int i = 0; i < 1000; i++) {
        char name[32];
        snprintf(name, sizeof name, "layer%d.weight", i);
        CHECK(xg_params_add(p, name, sh(1 + i % 7, 3, 1, 1), i % 3 != 0) == i);
    }
    CHECK(xg_params_count(p) == 1000);
    size_t trainable = 0;
    for (int i = 0; i < 1000; i++) {
        char name[32];
        snprintf(name, sizeof name, "layer%d.weight", i);
        CHECK(xg_params_find(p, name) == i);
        CHECK(!strcmp(xg_params_name(p, i), name));
        CHECK(xg_shape_same(xg_params_shape(p, i), sh(1 + i % 7, 3, 1, 1)));
        CHECK(xg_params_trainable(p, i) == (i % 3 != 0));
        CHECK(((uintptr_t)xg_params_data(p, i) & 63) == 0);
        CHECK(xg_params_data(p, i)[0] == 0);
        if (i % 3 != 0) trainable += (size_t)(1 + i % 7) * 3;
    }
    CHECK(xg_params_size(p) == trainable);
    CHECK(xg_params_find(p, "layer1000.weight") == -1 && xg_params_find(p, "") == -1);
    xg_params_free(p);
    xg_params_free(NULL);
}

static void test_store_refuses(void)
{
    xg_params *p = xg_params_new(NULL);
    REQUIRE(p != NULL);
    CHECK(xg_params_add(p, "w", sh(2, 3, 1, 1), true) == 0);
    CHECK(xg_params_add(p, "w", sh(2, 3, 1, 1), true) == 0);
    CHECK(xg_params_error(p)->code == XG_ERR_OK);
    CHECK(xg_params_add(p, "w", sh(3, 2, 1, 1), true) == -1);
    CHECK_ERROR(xg_params_error(p), XG_ERR_SHAPE);
    xg_params_clear_error(p);
    CHECK(xg_params_add(p, "v", sh(0, 2, 1, 1), true) == -1);
    CHECK_ERROR(xg_params_error(p), XG_ERR_ARGUMENT);
    CHECK(xg_params_add(p, "", sh(1, 2, 1, 1), true) == -1);
    CHECK(xg_params_add(p, NULL, sh(1, 2, 1, 1), true) == -1);
    CHECK(xg_params_count(p) == 1);
    CHECK(xg_params_data(p, 1) == NULL && xg_params_data(p, -1) == NULL);
    CHECK(!xg_params_trainable(p, 5) && !strcmp(xg_params_name(p, 5), ""));
    xg_params_free(p);
    CHECK(xg_params_count(NULL) == 0 && xg_params_error(NULL)->code != XG_ERR_OK);
}

static void test_store_freezes_and_clones(void)
{
    xg_params *p = xg_params_new(NULL);
    REQUIRE(p != NULL);
    xg_params_add(p, "body.weight", sh(4, 1, 1, 1), true);
    xg_params_add(p, "body.running", sh(2, 1, 1, 1), false);
    xg_params_add(p, "head.weight", sh(3, 1, 1, 1), true);
    xg_params_data(p, 0)[3] = 5;
    CHECK(xg_params_size(p) == 7);
    xg_params_freeze(p, "body", true);
    CHECK(!xg_params_trainable(p, 0) && !xg_params_trainable(p, 1) && xg_params_trainable(p, 2));
    xg_params *q = xg_params_clone(p);
    REQUIRE(q != NULL);
    CHECK(xg_params_count(q) == 3 && xg_params_find(q, "head.weight") == 2);
    CHECK(xg_params_data(q, 0)[3] == 5 && !xg_params_trainable(q, 0));
    xg_params_data(q, 0)[3] = 6;
    CHECK(xg_params_data(p, 0)[3] == 5);
    xg_params_freeze(q, "", false);
    CHECK(xg_params_trainable(q, 0) && !xg_params_trainable(q, 1) && !xg_params_trainable(p, 0));
    xg_params_free(q);
    xg_params_free(p);
}

static void test_store_in_a_fixed_buffer(void)
{
    static unsigned char memory[1 << 16];
    xg_config config;
    memset(&config, 0, sizeof config);
    config.fixed = memory;
    config.fixed_bytes = sizeof memory;
    xg_params *p = xg_params_new(&config);
    REQUIRE(p != NULL);
    CHECK(xg_params_add(p, "small", sh(100, 1, 1, 1), true) == 0);
    CHECK(xg_params_add(p, "large", sh(100000, 1, 1, 1), true) == -1);
    CHECK_ERROR(xg_params_error(p), XG_ERR_MEMORY);
    CHECK(xg_params_count(p) == 1 && xg_params_find(p, "large") == -1);
    xg_params_clear_error(p);
    CHECK(xg_params_add(p, "again", sh(100, 1, 1, 1), true) == 1);
    CHECK(xg_params_find(p, "small") == 0);
    CHECK(xg_params_clone(p) == NULL);
    xg_params_free(p);
}

static void test_scope_names(void)
{
    bench b;
    bench_open(&b, true);
    xg_scope stage = xg_in_at(&b.s, "layer1", 0), inner = xg_in(&stage, "conv1");
    CHECK(!strcmp(inner.prefix, "layer1.0.conv1."));
    xg_tensor *w = xg_param(&inner, "weight", sh(2, 3, 1, 1), XG_INIT_ONE, 1);
    CHECK(!strcmp(xg_name_of(w), "layer1.0.conv1.weight"));
    CHECK(xg_param(&inner, "weight", sh(2, 3, 1, 1), XG_INIT_ONE, 1) == w);
    CHECK(xg_params_count(b.params) == 1);
    CHECK(xg_data(w) == xg_params_data(b.params, 0));
    xg_scope deep = b.s;
    for (int i = 0; i < 40 && !xg_failed(b.tape); i++) deep = xg_in(&deep, "down");
    CHECK_ERROR(xg_tape_error(b.tape), XG_ERR_ARGUMENT);
    bench_close(&b);
}

static void test_param_refuses(void)
{
    bench b;
    bench_open(&b, true);
    xg_param(&b.s, "w", sh(2, 3, 1, 1), XG_INIT_ZERO, 1);
    CHECK_OK(b.tape);
    CHECK(isnan(xg_item(xg_param(&b.s, "w", sh(3, 3, 1, 1), XG_INIT_ZERO, 1))));
    CHECK_ERROR(xg_tape_error(b.tape), XG_ERR_SHAPE);
    xg_clear_error(b.tape);
    xg_scope blind = xg_scope_new(b.tape, b.params, NULL, true);
    xg_param(&blind, "w", sh(2, 3, 1, 1), XG_INIT_KAIMING, 1);   /* it exists: nothing to draw */
    CHECK_OK(b.tape);
    xg_param(&blind, "v", sh(2, 3, 1, 1), XG_INIT_KAIMING, 1);
    CHECK_ERROR(xg_tape_error(b.tape), XG_ERR_ARGUMENT);
    xg_clear_error(b.tape);
    xg_scope poor = xg_scope_new(b.tape, NULL, &b.rng, true);
    xg_param(&poor, "w", sh(2, 3, 1, 1), XG_INIT_ZERO, 1);
    CHECK_ERROR(xg_tape_error(b.tape), XG_ERR_ARGUMENT);
    CHECK(xg_params_count(b.params) == 1);
    bench_close(&b);
}

static void test_layers_leave_the_store_alone_on_a_failed_tape(void)
{
    bench b;
    bench_open(&b, true);
    xg_tape *other = xg_tape_new(NULL);
    xg_conv(&b.s, "conv", xg_leaf(other, sh(1, 3, 8, 8), NULL), 4, NULL);
    CHECK_ERROR(xg_tape_error(b.tape), XG_ERR_TAPE);
    xg_clear_error(b.tape);
    xg_conv(&b.s, "conv", NULL, 4, NULL);
    CHECK_ERROR(xg_tape_error(b.tape), XG_ERR_ARGUMENT);
    xg_resnet(&b.s, xg_leaf(b.tape, sh(1, 3, 32, 32), NULL), NULL);
    xg_batch_norm(&b.s, "bn", xg_leaf(b.tape, sh(2, 3, 8, 8), NULL), NULL);
    xg_bcos_conv(&b.s, "bcos", xg_leaf(b.tape, sh(2, 3, 8, 8), NULL), 2, NULL);
    CHECK(xg_params_count(b.params) == 0);
    xg_tape_free(other);
    bench_close(&b);
}

static void moments(const xg_real *w, size_t n, double *mean, double *deviation, double *largest)
{
    double sum = 0, squares = 0;
    *largest = 0;
    for (size_t i = 0; i < n; i++) {
        sum += (double)w[i];
        squares += (double)w[i] * (double)w[i];
        if (fabs((double)w[i]) > *largest) *largest = fabs((double)w[i]);
    }
    *mean = sum / (double)n;
    *deviation = sqrt(squares / (double)n - *mean * *mean);
}

static void test_initial_values(void)
{
    bench b;
    bench_open(&b, true);
    const xg_shape s = xg_shape4(64, 32, 5, 3);
    const size_t size = 64 * 32 * 5 * 3;
    const double in = 32 * 15, out = 64 * 15;
    double mean, deviation, largest;
    struct { const char *name; xg_init init; double gain, deviation, range; } rows[4] = {
        { "kaiming", XG_INIT_KAIMING, 0.5, 0.5 * sqrt(2 / in), 0 },
        { "fan_out", XG_INIT_KAIMING_FAN_OUT, 2, 2 * sqrt(2 / out), 0 },
        { "xavier", XG_INIT_XAVIER, 1, sqrt(6 / (in + out) / 3), sqrt(6 / (in + out)) },
        { "lecun", XG_INIT_LECUN_UNIFORM, 1, sqrt(1 / in / 3), sqrt(1 / in) }
    };
    for (int i = 0; i < 4; i++) {
        moments(xg_data(xg_param(&b.s, rows[i].name, s, rows[i].init, rows[i].gain)), size, &mean,
                &deviation, &largest);
        CHECK(fabs(mean) < 5 * rows[i].deviation / sqrt((double)size));
        CHECK(fabs(deviation / rows[i].deviation - 1) < 0.02);
        if (rows[i].range > 0) CHECK(largest <= rows[i].range * 1.0001);
        if (rows[i].range > 0) CHECK(largest > rows[i].range * 0.99);
    }
    xg_tensor *x = xg_randn(b.tape, sh(2, 4, 5, 6), &b.rng);
    xg_tensor *copy = xg_conv2d(x, xg_param(&b.s, "identity", sh(4, 4, 3, 3), XG_INIT_IDENTITY, 1),
                                window(3, 1, 1, 1));
    CHECK_NEAR(xg_item(xg_sum(xg_abs(xg_sub(x, copy)))), 0, 1e-12);
    CHECK_NEAR(xg_item(xg_param(&b.s, "one", sh(4, 1, 1, 1), XG_INIT_ONE, 1)), 1, 0);
    CHECK_NEAR(xg_item(xg_param(&b.s, "zero", sh(4, 1, 1, 1), XG_INIT_ZERO, 1)), 0, 0);
    bench_close(&b);
}

static void test_leaves_of_this_tape(void)
{
    bench b;
    xg_tensor *leaf[8];
    bench_open(&b, true);
    xg_params_add(b.params, "first", sh(1, 1, 1, 1), true);
    xg_params_add(b.params, "unused", sh(1, 1, 1, 1), true);
    xg_tensor *second = xg_param(&b.s, "second", sh(1, 1, 1, 1), XG_INIT_ONE, 1);
    xg_tensor *first = xg_param(&b.s, "first", sh(1, 1, 1, 1), XG_INIT_ONE, 1);
    xg_buffer(&b.s, "buffer", sh(1, 1, 1, 1), XG_INIT_ONE);
    CHECK(xg_params_leaves(b.params, b.tape, leaf, 8) == 2);
    CHECK(leaf[0] == first && leaf[1] == second);
    CHECK(xg_params_leaves(b.params, b.tape, leaf, 0) == 2);
    xg_params_freeze(b.params, "sec", true);
    CHECK(xg_params_leaves(b.params, b.tape, leaf, 8) == 1);
    xg_mark mark = xg_tape_mark(b.tape);
    xg_param(&b.s, "unused", sh(1, 1, 1, 1), XG_INIT_ONE, 1);
    CHECK(xg_params_leaves(b.params, b.tape, leaf, 8) == 2);
    xg_tape_release(b.tape, mark);
    CHECK(xg_params_leaves(b.params, b.tape, leaf, 8) == 1);
    bench_close(&b);
}

/* A new store may stand where a freed one stood: its leaves must not be the old one's. */
static void test_leaves_of_a_freed_store(void)
{
    static unsigned char memory[1 << 15];
    bench b;
    xg_tensor *leaf[2];
    bench_open(&b, true);
    xg_config config;
    memset(&config, 0, sizeof config);
    config.fixed = memory;
    config.fixed_bytes = sizeof memory;
    for (int i = 0; i < 2; i++) {
        xg_params *p = xg_params_new(&config);
        REQUIRE(p != NULL);
        xg_scope s = xg_scope_new(b.tape, p, &b.rng, true);
        if (i == 1) xg_params_add(p, "moves the rest", sh(64, 1, 1, 1), true);
        if (i == 1) xg_params_add(p, "w", sh(1, 1, 1, 1), true);
        if (i == 1) CHECK(xg_params_leaves(p, b.tape, leaf, 2) == 0);
        CHECK(xg_data(xg_param(&s, "w", sh(1, 1, 1, 1), XG_INIT_ONE, 1)) == xg_params_data(p, i));
        CHECK(xg_params_leaves(p, b.tape, leaf, 2) == 1);
        xg_params_free(p);
    }
    bench_close(&b);
}

/* ---- 7.2 layers ----------------------------------------------------------------------------- */

static void test_conv_and_dense_by_loops(void)
{
    bench b;
    bench_open(&b, true);
    xg_conv_options o;
    memset(&o, 0, sizeof o);
    o.window = window(3, 2, 1, 2);
    o.bias = true;
    xg_tensor *x = xg_randn(b.tape, sh(2, 4, 5, 7), &b.rng);
    xg_tensor *y = xg_conv(&b.s, "conv", x, 6, &o);
    scatter_values(&b, "bias", -1, 1);
    xg_tape_reset(b.tape);
    x = xg_randn(b.tape, sh(2, 4, 5, 7), &b.rng);
    y = xg_conv(&b.s, "conv", x, 6, &o);
    REQUIRE(xg_shape_same(xg_shape_of(y), sh(2, 6, 3, 4)));
    CHECK(xg_find(b.tape, "conv") == y);
    const xg_real *w = values(b.params, "conv.weight"), *bias = values(b.params, "conv.bias");
    const xg_real *in = xg_data(x), *out = xg_data(y);
    CHECK(xg_shape_same(xg_params_shape(b.params, 0), sh(6, 2, 3, 3)));
    CHECK(xg_shape_same(xg_params_shape(b.params, 1), sh(6, 1, 1, 1)));
    for (int i = 0; i < 2 * 6 * 3 * 4; i++) {
        int n = i / 72, k = i / 12 % 6, h = i / 4 % 3, v = i % 4;
        double sum = (double)bias[k];
        for (int j = 0; j < 18; j++) {
            int c = j / 9, r = h * 2 - 1 + j / 3 % 3, q = v * 2 - 1 + j % 3;
            if (r < 0 || r >= 5 || q < 0 || q >= 7) continue;
            sum += (double)w[k * 18 + j] * (double)in[((n * 4 + k / 3 * 2 + c) * 5 + r) * 7 + q];
        }
        CHECK_NEAR(out[i], sum, TOL(1e-5, 1e-12));
    }
    y = xg_dense(&b.s, "dense", x, 5, true);
    scatter_values(&b, "dense.bias", -1, 1);
    xg_clear_error(b.tape);
    y = xg_dense(&b.s, "dense", x, 5, true);
    CHECK(xg_shape_same(xg_shape_of(y), sh(2, 5, 1, 1)));
    w = values(b.params, "dense.weight");
    bias = values(b.params, "dense.bias");
    for (int i = 0; i < 10; i++) {
        double sum = (double)bias[i % 5];
        for (int j = 0; j < 140; j++) {
            sum += (double)w[i % 5 * 140 + j] * (double)in[i / 5 * 140 + j];
        }
        CHECK_NEAR(xg_data(y)[i], sum, TOL(1e-5, 1e-12));
    }
    bench_close(&b);
}

static void test_conv_refuses(void)
{
    bench b;
    bench_open(&b, true);
    xg_conv_options o;
    memset(&o, 0, sizeof o);
    o.window = window(3, 1, 1, 2);
    xg_tensor *x = xg_leaf(b.tape, sh(1, 3, 4, 4), NULL);
    xg_conv(&b.s, "conv", x, 4, &o);
    CHECK_ERROR(xg_tape_error(b.tape), XG_ERR_SHAPE);
    xg_clear_error(b.tape);
    o.window.groups = 0;
    xg_conv(&b.s, "conv", x, 0, &o);
    CHECK(xg_failed(b.tape));
    xg_clear_error(b.tape);
    o.window.groups = -1;
    xg_conv(&b.s, "conv", x, 4, &o);
    CHECK(xg_failed(b.tape));
    xg_clear_error(b.tape);
    CHECK(xg_params_count(b.params) == 0);
    bench_close(&b);
}

/* Two channels of four values: means 2.5 and 1, biased variances 1.25 and 4. */
static const double norm_in[8] = { 1, 2, 3, -1, 3, 4, -1, 3 };   /* n 2, c 2, w 2 */

static xg_tensor *norm_input(bench *b)
{
    xg_real x[8];
    for (int i = 0; i < 8; i++) x[i] = (xg_real)norm_in[i];
    return xg_leaf(b->tape, sh(2, 2, 1, 2), x);
}

static void test_batch_norm_by_hand(void)
{
    static const double weight[2] = { 2, -1 }, bias[2] = { 0.5, 3 };
    static const double mean[2] = { 2.5, 1 }, var[2] = { 1.25, 4 };
    bench b;
    bench_open(&b, true);
    xg_batch_norm(&b.s, "bn", norm_input(&b), NULL);
    CHECK_OK(b.tape);
    CHECK(xg_params_count(b.params) == 4 && xg_params_size(b.params) == 4);
    CHECK_NEAR(values(b.params, "bn.weight")[1], 1, 0);
    CHECK_NEAR(values(b.params, "bn.running_var")[1], 1, 0);
    set(b.params, "bn.weight", weight);
    set(b.params, "bn.bias", bias);
    xg_tape_reset(b.tape);                     /* drops the statistics of the first pass */

    xg_tensor *y = xg_batch_norm(&b.s, "bn", norm_input(&b), NULL);
    for (int i = 0; i < 8; i++) {
        int c = i / 2 % 2;
        double hat = (norm_in[i] - mean[c]) / sqrt(var[c] + 1e-5);
        CHECK_NEAR(xg_data(y)[i], weight[c] * hat + bias[c], TOL(1e-5, 1e-12));
    }
    CHECK_NEAR(values(b.params, "bn.running_mean")[0], 0, 0);   /* not before the step */
    xg_optim o;
    memset(&o, 0, sizeof o);
    o.lr = 1e-30;
    CHECK(xg_optim_step(&o, b.params, xg_sum(y)) == XG_ERR_OK);
    for (int c = 0; c < 2; c++) {
        CHECK_NEAR(values(b.params, "bn.running_mean")[c], 0.1 * mean[c], TOL(1e-6, 1e-14));
        CHECK_NEAR(values(b.params, "bn.running_var")[c], 0.9 + 0.1 * var[c] * 4 / 3,
                   TOL(1e-6, 1e-14));
    }
    xg_tape_reset(b.tape);
    set(b.params, "bn.running_mean", mean);
    set(b.params, "bn.running_var", var);
    b.s.train = false;
    y = xg_batch_norm(&b.s, "bn", norm_input(&b), NULL);
    for (int i = 0; i < 8; i++) {
        int c = i / 2 % 2;
        double hat = (norm_in[i] - mean[c]) / sqrt(var[c] + 1e-5);
        CHECK_NEAR(xg_data(y)[i], weight[c] * hat + bias[c], TOL(1e-5, 1e-12));
    }
    bench_close(&b);
}

static void test_batch_norm_switches(void)
{
    static const double three[2] = { 3, 3 };
    bench b;
    bench_open(&b, true);
    xg_norm_options o;
    memset(&o, 0, sizeof o);
    o.zero_gain = true;
    o.eps = 1;
    o.momentum = 0.5;
    xg_tensor *y = xg_batch_norm(&b.s, "bn", norm_input(&b), &o);
    CHECK_NEAR(xg_item(xg_sum(xg_abs(y))), 0, 0);
    set(b.params, "bn.weight", three);
    o.zero_gain = false;
    o.frozen = true;                            /* running mean 0 and variance 1, eps 1 */
    y = xg_batch_norm(&b.s, "bn", norm_input(&b), &o);
    for (int i = 0; i < 8; i++) {
        CHECK_NEAR(xg_data(y)[i], 3 * norm_in[i] / sqrt(2.0), TOL(1e-6, 1e-14));
    }
    xg_tape_reset(b.tape);
    o.frozen = false;
    xg_params_freeze(b.params, "bn.running", true);          /* a frozen buffer does not move */
    y = xg_batch_norm(&b.s, "bn", norm_input(&b), &o);
    xg_optim step;
    memset(&step, 0, sizeof step);
    CHECK(xg_optim_step(&step, b.params, xg_sum(y)) == XG_ERR_OK);
    CHECK_NEAR(values(b.params, "bn.running_mean")[0], 0, 0);
    xg_params_freeze(b.params, "bn.running", false);
    y = xg_batch_norm(&b.s, "bn", norm_input(&b), &o);
    CHECK(xg_optim_step(&step, b.params, xg_sum(y)) == XG_ERR_OK);
    CHECK_NEAR(values(b.params, "bn.running_mean")[0], 1.25, TOL(1e-6, 1e-14));
    xg_batch_norm(&b.s, "bn", xg_leaf(b.tape, sh(1, 2, 1, 1), NULL), NULL);
    CHECK_ERROR(xg_tape_error(b.tape), XG_ERR_SHAPE);
    bench_close(&b);
}

/* A release to a mark between forward pass and step must not bring committed statistics back. */
static void test_batch_norm_commits_once(void)
{
    bench b;
    bench_open(&b, true);
    xg_tensor *y = xg_sum(xg_batch_norm(&b.s, "bn", norm_input(&b), NULL));
    xg_optim o;
    memset(&o, 0, sizeof o);
    for (int i = 0; i < 2; i++) {
        xg_mark mark = xg_tape_mark(b.tape);
        CHECK(xg_optim_step(&o, b.params, y) == XG_ERR_OK);
        xg_tape_release(b.tape, mark);
        CHECK_NEAR(values(b.params, "bn.running_mean")[0], 0.25, TOL(1e-6, 1e-14));
        CHECK_NEAR(values(b.params, "bn.running_var")[1], 0.9 + 0.1 * 16 / 3, TOL(1e-6, 1e-14));
    }
    bench_close(&b);
}

/* Rao 2023, 3.1. A constant map has no variance: the output is x / sqrt(eps). */
static void test_uncentred_norm(void)
{
    static const double weight[2] = { 2, -1 }, var[2] = { 1.25, 4 };
    bench b;
    bench_open(&b, true);
    xg_norm_options o;
    memset(&o, 0, sizeof o);
    o.uncentred = true;
    xg_batch_norm(&b.s, "bn", norm_input(&b), &o);
    CHECK(xg_params_count(b.params) == 2 && xg_params_find(b.params, "bn.bias") == -1);
    set(b.params, "bn.weight", weight);
    xg_tape_reset(b.tape);
    xg_tensor *y = xg_batch_norm(&b.s, "bn", norm_input(&b), &o);
    for (int i = 0; i < 8; i++) {
        int c = i / 2 % 2;
        CHECK_NEAR(xg_data(y)[i], weight[c] * norm_in[i] / sqrt(var[c] + 1e-5), TOL(1e-5, 1e-12));
    }
    xg_optim step;
    memset(&step, 0, sizeof step);
    step.lr = 1e-30;
    CHECK(xg_optim_step(&step, b.params, xg_sum(y)) == XG_ERR_OK);
    CHECK_NEAR(values(b.params, "bn.running_var")[1], 0.9 + 0.1 * 4, TOL(1e-6, 1e-14));

    xg_tensor *flat = xg_full(b.tape, sh(3, 2, 2, 2), 0.25);    /* O12: variance 0 */
    y = xg_batch_norm(&b.s, "bn", flat, &o);
    CHECK_NEAR(xg_data(y)[0], 2 * 0.25 / sqrt(1e-5), TOL(1e-5, 1e-12));
    CHECK_NEAR(xg_data(y)[5], -0.25 / sqrt(1e-5), TOL(1e-5, 1e-12));
    bench_close(&b);
}

static void test_dropout(void)
{
    bench b;
    bench_open(&b, true);
    xg_tensor *x = xg_full(b.tape, sh(4, 5, 20, 25), 3);
    xg_tensor *y = xg_dropout(&b.s, x, 0.25);
    size_t zeros = 0, kept = 0;
    for (size_t i = 0; i < 10000; i++) {
        if (xg_data(y)[i] == 0) zeros++;
        else if (fabs((double)xg_data(y)[i] - 4) < 1e-6) kept++;
    }
    CHECK(zeros + kept == 10000 && zeros > 2300 && zeros < 2700);
    CHECK_NEAR(xg_item(xg_sum(xg_grad(y, x))), (double)kept / 0.75, 1e-5);
    CHECK(xg_dropout(&b.s, x, 0) == x);
    b.s.train = false;
    CHECK(xg_dropout(&b.s, x, 0.25) == x);
    b.s.train = true;
    xg_dropout(&b.s, x, 1);
    CHECK_ERROR(xg_tape_error(b.tape), XG_ERR_ARGUMENT);
    xg_clear_error(b.tape);
    xg_dropout(&b.s, x, (double)NAN);
    CHECK_ERROR(xg_tape_error(b.tape), XG_ERR_ARGUMENT);
    bench_close(&b);
}

/* One B-cos output by plain loops: the best of `maxout` candidates, scaled by |cos|^(B-1). */
typedef struct bcos_case { double b; int maxout, groups, kernel, stride, pad; } bcos_case;

static double bcos_output(const bcos_case *k, const xg_real *x, const xg_real *w, int outputs,
                          int n, int o, int oh, int ow)
{
    const int c = 4 / k->groups, size = c * k->kernel * k->kernel;
    const int first = o / (outputs / k->groups) * c;
    double best = -1e300, norm = 1e-6;
    for (int m = 0; m < k->maxout; m++) {
        double dot = 0, length = 0, squares = 1e-6;
        for (int j = 0; j < size; j++) {
            int r = oh * k->stride - k->pad + j / k->kernel % k->kernel;
            int q = ow * k->stride - k->pad + j % k->kernel;
            double weight = (double)w[(o * k->maxout + m) * size + j], value = 0;
            if (r >= 0 && r < 6 && q >= 0 && q < 5) {
                value = (double)x[((n * 4 + first + j / k->kernel / k->kernel) * 6 + r) * 5 + q];
            }
            dot += weight * value;
            length += weight * weight;
            squares += value * value;
        }
        norm = squares;
        if (dot / sqrt(length) > best) best = dot / sqrt(length);
    }
    double cosine = fabs(best) / sqrt(norm);
    if (k->b == 1) return best;
    return k->b == 2 ? best * cosine : best * pow(cosine + 1e-6, k->b - 1);
}

static void test_bcos_by_loops(void)
{
    static const bcos_case cases[] = {
        { 2, 1, 1, 3, 1, 1 }, { 2, 1, 1, 1, 1, 0 }, { 2, 1, 1, 3, 2, 1 }, { 1.5, 1, 1, 3, 1, 0 },
        { 1, 1, 1, 3, 1, 1 }, { 2, 2, 1, 3, 2, 1 }, { 2, 1, 2, 3, 1, 1 }, { 2.5, 3, 2, 2, 1, 0 },
        { 2, 1, 4, 3, 1, 1 }, { 2, 1, 1, 1, 2, 0 }
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        bench b;
        bench_open(&b, true);
        const bcos_case *k = &cases[i];
        xg_bcos_options o;
        memset(&o, 0, sizeof o);
        o.window = window(k->kernel, k->stride, k->pad, k->groups);
        o.b = k->b;
        o.maxout = k->maxout;
        xg_tensor *x = xg_randn(b.tape, sh(2, 4, 6, 5), &b.rng);
        xg_tensor *y = xg_bcos_conv(&b.s, "bcos", x, 4, &o);
        CHECK_OK(b.tape);
        xg_shape s = xg_shape_of(y);
        CHECK(s.h == (6 + 2 * k->pad - k->kernel) / k->stride + 1);
        const xg_real *w = values(b.params, "bcos.weight");
        int at = 0;
        for (int n = 0; n < s.n; n++) for (int c = 0; c < s.c; c++)
            for (int h = 0; h < s.h; h++) for (int v = 0; v < s.w; v++) {
                CHECK_NEAR(xg_data(y)[at++], bcos_output(k, xg_data(x), w, 4, n, c, h, v),
                           TOL(2e-5, 1e-12));
            }
        bench_close(&b);
    }
}

static void test_bcos_dense_is_a_1x1_convolution(void)
{
    bench b;
    bench_open(&b, true);
    xg_bcos_options o;
    memset(&o, 0, sizeof o);
    o.maxout = 2;
    xg_tensor *x = xg_randn(b.tape, sh(3, 8, 1, 1), &b.rng);
    xg_tensor *y = xg_bcos_dense(&b.s, "fc", x, 5, &o);
    xg_tensor *z = xg_bcos_conv(&b.s, "fc", x, 5, &o);
    CHECK_OK(b.tape);
    CHECK(xg_shape_same(xg_shape_of(y), sh(3, 5, 1, 1)));
    CHECK_NEAR(xg_item(xg_sum(xg_abs(xg_sub(y, z)))), 0, TOL(1e-5, 1e-12));
    o.b = 0.5;
    xg_bcos_dense(&b.s, "other", x, 5, &o);
    CHECK_ERROR(xg_tape_error(b.tape), XG_ERR_ARGUMENT);
    bench_close(&b);
}

static void test_bcos_input(void)
{
    bench b;
    bench_open(&b, true);
    xg_real rgb[3] = { (xg_real)0.25, (xg_real)0.5, 1 };
    static const double expected[6] = { 0.25, 0.5, 1, 0.75, 0.5, 0 };
    xg_tensor *y = xg_bcos_input(xg_leaf(b.tape, sh(1, 3, 1, 1), rgb));
    CHECK(xg_shape_same(xg_shape_of(y), sh(1, 6, 1, 1)));
    for (int i = 0; i < 6; i++) CHECK_NEAR(xg_data(y)[i], expected[i], 1e-7);
    bench_close(&b);
}

/* Oracle O10, second half: w may be scaled freely, and scaling a patch scales the output. */
static void test_bcos_homogeneity(void)
{
    bench b;
    bench_open(&b, true);
    xg_bcos_options o;
    memset(&o, 0, sizeof o);
    o.window = window(3, 1, 1, 1);
    xg_tensor *x = xg_affine(xg_randn(b.tape, sh(2, 4, 6, 6), &b.rng), 5, 0);
    xg_real before[32], after[32];
    xg_read(xg_bcos_conv(&b.s, "bcos", x, 3, &o), before, 32);
    xg_real *w = values(b.params, "bcos.weight");
    for (int i = 0; i < 3 * 4 * 9; i++) w[i] *= (xg_real)(i < 36 ? 7 : 0.01);
    xg_read(xg_bcos_conv(&b.s, "bcos", x, 3, &o), after, 32);
    for (int i = 0; i < 32; i++) CHECK_NEAR(after[i], before[i], TOL(1e-5, 1e-12));
    xg_read(xg_bcos_conv(&b.s, "bcos", xg_affine(x, 3, 0), 3, &o), after, 32);
    for (int i = 0; i < 32; i++) CHECK_NEAR(after[i], 3 * (double)before[i], TOL(1e-5, 1e-7));
    bench_close(&b);
}

/* ---- explanations of the families ----------------------------------------------------------- */

static xg_tensor *small_resnet(xg_scope *s, xg_tensor *x)
{
    return xg_resnet(s, x, (const xg_resnet_options *)s->user);
}

/* Oracle O10, first half: contributions add up to the logit less its bias, at every layer. */
static void test_bcos_contributions_are_complete(void)
{
    static const char *const at[] = { "input", "layer1", "layer2", "features" };
    bench b;
    bench_open(&b, false);
    xg_resnet_options o;
    memset(&o, 0, sizeof o);
    o.depth = 20;
    o.family = XG_FAMILY_BCOS;
    o.logit_bias = -2;
    int label[2] = { 3, 8 };
    for (int pass = 0; pass < 2; pass++) {      /* the first creates, the second is looked at */
        xg_tape_reset(b.tape);
        xg_tensor *x = xg_bcos_input(xg_sigmoid(xg_randn(b.tape, sh(2, 3, 12, 12), &b.rng)));
        xg_tensor *score = xg_pick(xg_resnet(&b.s, x, &o), label);
        CHECK_OK(b.tape);
        if (pass == 0) scatter_values(&b, "running_var", 0.02, 0.2);
        if (pass == 0) scatter_values(&b, "bn1.weight", 0.5, 1.5);
        for (int i = 0; i < 4 && pass == 1; i++) {
            xg_tensor *map = xg_bcos_map(score, xg_find(b.tape, at[i]));
            xg_tensor *sum = xg_sum_to(map, sh(2, 1, 1, 1));
            CHECK(fabs(xg_item(score) + 2) > 1e-4);       /* the sums are not those of nothing */
            for (int n = 0; n < 2; n++) {
                double logit = (double)xg_data(score)[n] + 2;
                CHECK_NEAR((double)xg_data(sum)[n] / logit, 1, TOL(1e-3, 1e-11));
            }
        }
    }
    bench_close(&b);
}

/* Oracle O11: a loss on a B-cos map reaches the weights through the dynamic factors. */
static xg_tensor *map_loss(bench *b, bool detach)
{
    xg_bcos_options o;
    memset(&o, 0, sizeof o);
    o.window = window(3, 1, 1, 1);
    o.detach = detach;
    xg_norm_options n;
    memset(&n, 0, sizeof n);
    n.uncentred = true;
    int label[2] = { 1, 0 };
    xg_rng rng = xg_rng_seed(3);
    xg_tensor *x = xg_randn(b->tape, sh(2, 3, 4, 4), &rng);
    xg_tensor *y = xg_batch_norm(&b->s, "bn", xg_bcos_conv(&b->s, "one", x, 4, &o), &n);
    y = xg_bcos_conv(&b->s, "two", y, 4, &o);
    y = xg_global_avgpool(xg_bcos_conv(&b->s, "fc", y, 2, NULL));
    xg_tensor *map = xg_bcos_map(xg_pick(y, label), x);
    return xg_add(xg_sum(xg_square(xg_affine(map, 30, 0))), xg_cross_entropy(y, label, NULL));
}

static void test_bcos_training_through_maps(void)
{
    bench b;
    bench_open(&b, true);
    xg_tensor *loss = map_loss(&b, false);
    CHECK_OK(b.tape);
    double difference = 0, worst = 0;
    for (int i = 0; i < xg_params_count(b.params); i++) {
        const char *name = xg_params_name(b.params, i);
        if (!xg_params_trainable(b.params, i)) continue;
        xg_tape_reset(b.tape);
        loss = map_loss(&b, false);
        xg_shape s = xg_params_shape(b.params, i);
        xg_tensor *g = xg_grad(loss, xg_param(&b.s, name, s, XG_INIT_ZERO, 1));
        xg_tensor *detached = xg_grad(map_loss(&b, true), xg_param(&b.s, name, s, XG_INIT_ZERO, 1));
        xg_real *w = xg_params_data(b.params, i), g_copy[32];
        size_t count = xg_read(g, g_copy, 32) < 32 ? xg_size(g) : 32;
        difference += xg_item(xg_sum(xg_abs(xg_sub(g, detached))));
        for (size_t j = 0; j < count && IS_DOUBLE; j += 5) {
            xg_real keep = w[j];
            xg_mark mark = xg_tape_mark(b.tape);
            w[j] = keep + (xg_real)1e-5;
            double up = xg_item(map_loss(&b, false));
            w[j] = keep - (xg_real)1e-5;
            double down = xg_item(map_loss(&b, false));
            w[j] = keep;
            xg_tape_release(b.tape, mark);
            double error = fabs((up - down) / 2e-5 - (double)g_copy[j]);
            if (error > worst) worst = error;
        }
    }
    CHECK(difference > 0.1);
    CHECK(worst < 1e-6);
    CHECK_OK(b.tape);
    bench_close(&b);
}

/* Oracles O7 and O8: without biases input times gradient is integrated gradients, and its sum is
 * the logit less the head's bias. */
static void test_x_net_maps(void)
{
    bench b;
    bench_open(&b, false);
    xg_resnet_options o;
    memset(&o, 0, sizeof o);
    o.depth = 20;
    o.family = XG_FAMILY_X;
    b.s.user = &o;
    int label[2] = { 4, 9 };
    xg_tensor *x = xg_randn(b.tape, sh(2, 3, 12, 12), &b.rng);
    xg_tensor *logits = xg_resnet(&b.s, x, &o);
    CHECK_OK(b.tape);
    CHECK_NEAR(xg_item(xg_sum(xg_abs(logits))), 0, 0);   /* Fixup: the classifier starts at zero */
    for (int i = 0; i < xg_params_count(b.params); i++) {
        const char *name = xg_params_name(b.params, i);
        CHECK(!strcmp(name, "linear.bias") || strstr(name, "bias") == NULL);
    }
    scatter_values(&b, "conv2.weight", -0.08, 0.08);
    scatter_values(&b, "linear.weight", -1, 1);
    scatter_values(&b, "linear.bias", 1, 2);
    xg_tape_reset(b.tape);
    x = xg_randn(b.tape, sh(2, 3, 12, 12), &b.rng);
    logits = xg_resnet(&b.s, x, &o);
    xg_tensor *map = xg_input_x_gradient(xg_pick(logits, label), x);
    xg_tensor *sum = xg_sum_to(map, sh(2, 1, 1, 1));
    for (int n = 0; n < 2; n++) {
        double bias = (double)values(b.params, "linear.bias")[label[n]];
        double logit = (double)xg_data(logits)[n * 10 + label[n]] - bias;
        CHECK(fabs(logit) > 1e-3);
        CHECK_NEAR(xg_data(sum)[n], logit, TOL(1e-4, 1e-11));
    }
    xg_path_options path;
    memset(&path, 0, sizeof path);
    path.steps = 8;
    xg_tensor *integrated = xg_integrated_gradients(&b.s, small_resnet, x, label, &path);
    double scale = xg_item(xg_max_to(xg_abs(map), sh(1, 1, 1, 1)));
    double apart = xg_item(xg_max_to(xg_abs(xg_sub(map, integrated)), sh(1, 1, 1, 1)));
    CHECK_OK(b.tape);
    CHECK(apart <= TOL(1e-4, 1e-10) * scale);
    bench_close(&b);
}

/* ---- 7.3 networks --------------------------------------------------------------------------- */

static xg_tensor *run_resnet(bench *b, int depth, xg_family family, xg_shape in)
{
    xg_resnet_options o;
    memset(&o, 0, sizeof o);
    o.depth = depth;
    o.family = family;
    return xg_resnet(&b->s, xg_full(b->tape, in, 0.5), &o);
}

static void test_resnet_counts(void)
{
    static const struct { int depth; size_t numbers; int entries; } rows[] = {
        { 18, 11689512, 102 }, { 34, 21797672, 182 }, { 50, 25557032, 267 },
        { 20, 269722, 97 }, { 32, 464154, 157 }, { 44, 658586, 217 }, { 56, 853018, 277 }
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        bench b;
        bench_open(&b, false);
        int side = rows[i].depth % 16 == 2 && rows[i].depth != 20 ? 32 : 8;
        xg_tensor *y = run_resnet(&b, rows[i].depth, XG_FAMILY_PLAIN, sh(1, 3, side, side));
        CHECK_OK(b.tape);
        CHECK(xg_shape_of(y).c == (i < 3 ? 1000 : 10));
        CHECK(xg_params_size(b.params) == rows[i].numbers);
        /* Two buffers a norm; torch counts a third, of batches. */
        CHECK(xg_params_count(b.params) == rows[i].entries);
        bench_close(&b);
    }
}

/* Names, stage shapes, and what a stage cut and folding change. */
static void test_resnet_names_and_stages(void)
{
    static const struct { const char *name; xg_shape s; } wanted[] = {
        { "conv1.weight", { 64, 3, 7, 7 } }, { "bn1.running_var", { 64, 1, 1, 1 } },
        { "layer1.1.conv2.weight", { 64, 64, 3, 3 } },
        { "layer2.0.downsample.0.weight", { 128, 64, 1, 1 } },
        { "layer3.0.downsample.1.running_mean", { 256, 1, 1, 1 } },
        { "layer4.1.bn2.bias", { 512, 1, 1, 1 } }, { "fc.weight", { 1000, 512, 1, 1 } },
        { "fc.bias", { 1000, 1, 1, 1 } }
    };
    bench b;
    bench_open(&b, false);
    run_resnet(&b, 18, XG_FAMILY_PLAIN, sh(1, 3, 64, 64));
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        int at = xg_params_find(b.params, wanted[i].name);
        CHECK(at >= 0 && xg_shape_same(xg_params_shape(b.params, at), wanted[i].s));
    }
    CHECK(xg_params_find(b.params, "layer1.0.downsample.0.weight") == -1);
    CHECK(xg_shape_same(xg_shape_of(xg_find(b.tape, "layer1")), sh(1, 64, 16, 16)));
    CHECK(xg_shape_same(xg_shape_of(xg_find(b.tape, "layer4")), sh(1, 512, 2, 2)));
    CHECK(xg_find(b.tape, "features") == xg_find(b.tape, "layer4"));
    CHECK(xg_op_of(xg_find(b.tape, "input")) == XG_OP_leaf);
    bench_close(&b);

    bench_open(&b, true);
    xg_resnet_options o;
    memset(&o, 0, sizeof o);
    o.stages = 3;
    o.classes = 2;
    o.folded = true;
    xg_tensor *y = xg_resnet(&b.s, xg_full(b.tape, sh(1, 3, 64, 64), 0.5), &o);
    CHECK(xg_shape_same(xg_shape_of(y), sh(1, 2, 1, 1)));
    CHECK(xg_params_find(b.params, "bn1.weight") == -1);
    CHECK(xg_params_find(b.params, "layer4.0.conv1.weight") == -1);
    CHECK(xg_params_find(b.params, "layer3.0.downsample.0.bias") >= 0);
    CHECK(xg_shape_same(xg_params_shape(b.params, xg_params_find(b.params, "fc.weight")),
                        sh(2, 256, 1, 1)));
    CHECK(xg_shape_same(xg_shape_of(xg_find(b.tape, "features")), sh(1, 256, 4, 4)));
    bench_close(&b);

    bench_open(&b, false);
    xg_scope inner = xg_in(&b.s, "teacher");
    memset(&o, 0, sizeof o);
    o.small_input = true;
    o.stages = 1;
    xg_resnet(&inner, xg_full(b.tape, sh(1, 3, 8, 8), 0.5), &o);
    CHECK(xg_shape_same(xg_shape_of(xg_find(b.tape, "teacher.layer1")), sh(1, 64, 8, 8)));
    CHECK(xg_params_find(b.params, "teacher.layer1.0.bn2.weight") >= 0);
    bench_close(&b);
}

static void test_resnet50_bottleneck(void)
{
    bench b;
    bench_open(&b, false);
    xg_resnet_options o;
    memset(&o, 0, sizeof o);
    o.depth = 50;
    o.stages = 2;
    xg_resnet(&b.s, xg_full(b.tape, sh(1, 3, 32, 32), 0.5), &o);
    CHECK_OK(b.tape);
    int at = xg_params_find(b.params, "layer1.0.downsample.0.weight");
    CHECK(at >= 0 && xg_shape_same(xg_params_shape(b.params, at), sh(256, 64, 1, 1)));
    at = xg_params_find(b.params, "layer2.0.conv2.weight");
    CHECK(at >= 0 && xg_shape_same(xg_params_shape(b.params, at), sh(128, 128, 3, 3)));
    at = xg_params_find(b.params, "layer2.3.bn3.weight");
    CHECK(at >= 0 && xg_shape_same(xg_params_shape(b.params, at), sh(512, 1, 1, 1)));
    /* The stride sits in the 3x3 convolution. */
    CHECK(xg_shape_of(xg_find(b.tape, "layer2.0.conv1")).h == 8);
    CHECK(xg_shape_of(xg_find(b.tape, "layer2.0.conv2")).h == 4);
    bench_close(&b);
}

/* Option A: every second pixel, and the old channels in the middle of the new ones. */
static void test_cifar_shortcut(void)
{
    bench b;
    bench_open(&b, false);
    run_resnet(&b, 20, XG_FAMILY_X, sh(1, 3, 8, 8));    /* its residual branches start at zero */
    const xg_real *in = xg_data(xg_find(b.tape, "layer1"));
    const xg_real *out = xg_data(xg_find(b.tape, "layer2"));
    CHECK(xg_shape_same(xg_shape_of(xg_find(b.tape, "layer2")), sh(1, 32, 4, 4)));
    double total = 0;
    for (int c = 0; c < 32; c++) for (int i = 0; i < 16; i++) {
        double want = c < 8 || c >= 24 ? 0 : (double)in[(c - 8) * 64 + i / 4 * 16 + i % 4 * 2];
        CHECK_NEAR(out[c * 16 + i], want, 0);
        total += want;
    }
    CHECK(total > 0);
    bench_close(&b);
}

static void test_resnet_refuses(void)
{
    bench b;
    bench_open(&b, false);
    run_resnet(&b, 19, XG_FAMILY_PLAIN, sh(1, 3, 32, 32));
    CHECK_ERROR(xg_tape_error(b.tape), XG_ERR_ARGUMENT);
    xg_clear_error(b.tape);
    xg_resnet_options o;
    memset(&o, 0, sizeof o);
    o.stages = 5;
    xg_resnet(&b.s, xg_full(b.tape, sh(1, 3, 32, 32), 1), &o);
    CHECK_ERROR(xg_tape_error(b.tape), XG_ERR_ARGUMENT);
    xg_clear_error(b.tape);
    o.stages = 0;
    o.folded = true;
    o.family = XG_FAMILY_BCOS;
    xg_resnet(&b.s, xg_full(b.tape, sh(1, 6, 32, 32), 1), &o);
    CHECK_ERROR(xg_tape_error(b.tape), XG_ERR_ARGUMENT);
    CHECK(xg_params_count(b.params) == 0);
    bench_close(&b);
}

static void test_squeezenet_and_mobilenet(void)
{
    bench b;
    bench_open(&b, false);
    xg_tensor *y = xg_squeezenet(&b.s, xg_full(b.tape, sh(1, 3, 97, 97), 1));
    CHECK_OK(b.tape);
    CHECK(xg_shape_same(xg_shape_of(y), sh(1, 1000, 1, 1)));
    CHECK(xg_params_size(b.params) == 1235496 && xg_params_count(b.params) == 52);
    int at = xg_params_find(b.params, "fire4/expand3x3.weight");
    CHECK(at >= 0 && xg_shape_same(xg_params_shape(b.params, at), sh(128, 32, 3, 3)));
    /* 97 -> 48 by the convolution; pools that may hang over: 24, 12, 6. */
    CHECK(xg_shape_of(xg_find(b.tape, "fire2")).h == 24);
    CHECK(xg_shape_of(xg_find(b.tape, "fire5")).h == 12);
    CHECK(xg_shape_same(xg_shape_of(xg_find(b.tape, "features")), sh(1, 512, 6, 6)));
    bench_close(&b);

    bench_open(&b, false);
    y = xg_mobilenet_v2(&b.s, xg_full(b.tape, sh(1, 3, 65, 48), 1));
    CHECK_OK(b.tape);
    CHECK(xg_shape_same(xg_shape_of(y), sh(1, 1001, 1, 1)));
    CHECK(xg_params_count(b.params) == 2 * 53 && xg_params_size(b.params) == 3489097);
    at = xg_params_find(b.params, "c52.weight");
    CHECK(at >= 0 && xg_shape_same(xg_params_shape(b.params, at), sh(1001, 1280, 1, 1)));
    at = xg_params_find(b.params, "c40.weight");
    CHECK(at >= 0 && xg_shape_same(xg_params_shape(b.params, at), sh(576, 1, 3, 3)));
    CHECK(xg_shape_same(xg_shape_of(xg_find(b.tape, "layer1")), sh(1, 16, 33, 24)));
    CHECK(xg_shape_same(xg_shape_of(xg_find(b.tape, "features")), sh(1, 1280, 3, 2)));
    bench_close(&b);
}

static void test_mlp_and_cnn(void)
{
    bench b;
    bench_open(&b, true);
    xg_tensor *x = xg_full(b.tape, sh(2, 3, 28, 28), 1);
    CHECK(xg_shape_same(xg_shape_of(xg_mlp(&b.s, x, NULL)), sh(2, 10, 1, 1)));
    CHECK(xg_params_size(b.params) == (2352 + 1) * 512 + 513 * 512 + 513 * 10);
    bench_close(&b);

    bench_open(&b, true);
    xg_cnn_options o;
    memset(&o, 0, sizeof o);
    o.hidden = 7;
    o.classes = 3;
    x = xg_full(b.tape, sh(2, 3, 28, 28), 1);
    CHECK(xg_shape_same(xg_shape_of(xg_cnn(&b.s, x, &o)), sh(2, 3, 1, 1)));
    CHECK(xg_shape_same(xg_shape_of(xg_find(b.tape, "features")), sh(2, 64, 3, 3)));
    CHECK(xg_params_size(b.params) == 28 * 16 + 145 * 32 + 289 * 64 + (576 + 1) * 7 + 8 * 3);
    bench_close(&b);

    bench_open(&b, true);
    o.batch_norm = o.global_pool = true;
    o.hidden = 0;
    x = xg_full(b.tape, sh(2, 3, 28, 28), 1);
    CHECK(xg_shape_same(xg_shape_of(xg_cnn(&b.s, x, &o)), sh(2, 3, 1, 1)));
    CHECK(xg_params_find(b.params, "conv1.bias") == -1);
    CHECK(xg_params_find(b.params, "bn3.bias") >= 0);
    CHECK(xg_shape_same(xg_params_shape(b.params, xg_params_find(b.params, "fc.weight")),
                        sh(3, 64, 1, 1)));
    o.layers = 40;
    xg_cnn(&b.s, x, &o);
    CHECK_ERROR(xg_tape_error(b.tape), XG_ERR_ARGUMENT);
    bench_close(&b);
}

/* Each family learns eight random pictures. */
static void test_losses_fall(void)
{
    static const struct { xg_family family; double lr; } rows[3] = {
        { XG_FAMILY_PLAIN, 3e-3 }, { XG_FAMILY_BCOS, 3e-2 }, { XG_FAMILY_X, 3e-2 }
    };
    for (int i = 0; i < 3; i++) {
        bench b;
        bench_open(&b, true);
        xg_resnet_options o;
        memset(&o, 0, sizeof o);
        o.depth = 20;
        o.family = rows[i].family;
        o.logit_bias = -1;
        xg_optim step;
        memset(&step, 0, sizeof step);
        step.kind = XG_ADAM;
        step.lr = rows[i].lr;
        int label[8] = { 0, 1, 2, 3, 4, 5, 6, 7 };
        double first = 0, last = 0;
        for (int k = 0; k < 20; k++) {
            xg_rng rng = xg_rng_seed(11);
            xg_mark mark = xg_tape_mark(b.tape);
            xg_tensor *x = xg_upsample(xg_randn(b.tape, sh(8, 3, 2, 2), &rng), 8, 8);
            if (o.family == XG_FAMILY_BCOS) x = xg_sigmoid(x);
            if (o.family == XG_FAMILY_BCOS) x = xg_bcos_input(x);
            xg_tensor *loss = xg_cross_entropy(xg_resnet(&b.s, x, &o), label, NULL);
            last = xg_item(loss);
            if (k == 0) first = last;
            CHECK(xg_optim_step(&step, b.params, loss) == XG_ERR_OK);
            CHECK_OK(b.tape);
            xg_tape_release(b.tape, mark);
        }
        if (!(last < 0.7 * first)) printf("  family %d: %g to %g\n", i, first, last);
        CHECK(last < 0.7 * first);
        CHECK(xg_optim_steps(&step, b.params) == 20);
        bench_close(&b);
    }
}

/* ---- 7.4 optimisers ------------------------------------------------------------------------- */

static const double slope[3] = { 0.5, -2, 3 };

/* A loss whose gradient by "w" is `slope` times k. */
static xg_tensor *linear_loss(bench *b, double k)
{
    xg_real c[3];
    for (int i = 0; i < 3; i++) c[i] = (xg_real)(k * slope[i]);
    xg_tensor *w = xg_param(&b->s, "w", sh(3, 1, 1, 1), XG_INIT_ONE, 1);
    return xg_dot(w, xg_leaf(b->tape, sh(3, 1, 1, 1), c));
}

static void test_sgd_by_hand(void)
{
    static const struct { double momentum; bool nesterov; double decay; } rows[4] = {
        { 0, false, 0 }, { 0, false, 0.1 }, { 0.9, false, 0.1 }, { 0.9, true, 0.1 }
    };
    for (int r = 0; r < 4; r++) {
        bench b;
        bench_open(&b, true);
        xg_optim o;
        memset(&o, 0, sizeof o);
        o.lr = 0.1;
        o.momentum = rows[r].momentum;
        o.nesterov = rows[r].nesterov;
        o.weight_decay = rows[r].decay;
        double w[3] = { 1, 1, 1 }, v[3] = { 0, 0, 0 };
        for (int step = 1; step <= 4; step++) {
            CHECK(xg_optim_step(&o, b.params, linear_loss(&b, step)) == XG_ERR_OK);
            for (int i = 0; i < 3; i++) {
                double g = step * slope[i] + rows[r].decay * w[i];
                v[i] = rows[r].momentum * v[i] + g;
                w[i] -= 0.1 * (rows[r].nesterov ? g + rows[r].momentum * v[i] : v[i]);
                CHECK_NEAR(values(b.params, "w")[i], w[i], TOL(1e-5, 1e-13));
            }
        }
        CHECK(xg_optim_steps(&o, b.params) == 4);
        bench_close(&b);
    }
}

static void test_adam_by_hand(void)
{
    for (int kind = XG_ADAM; kind <= XG_ADAMW; kind++) {
        bench b;
        bench_open(&b, true);
        xg_optim o;
        memset(&o, 0, sizeof o);
        o.kind = (xg_optim_kind)kind;
        o.lr = 0.02;
        o.beta1 = 0.8;
        o.weight_decay = 0.1;
        double w[3] = { 1, 1, 1 }, m[3] = { 0, 0, 0 }, v[3] = { 0, 0, 0 };
        for (int step = 1; step <= 5; step++) {
            double sign = step % 2 ? 1 : -0.3;
            CHECK(xg_optim_step(&o, b.params, linear_loss(&b, sign * step)) == XG_ERR_OK);
            for (int i = 0; i < 3; i++) {
                double g = sign * step * slope[i];
                if (kind == XG_ADAM) g += 0.1 * w[i];
                else w[i] -= 0.02 * 0.1 * w[i];
                m[i] = 0.8 * m[i] + (1 - 0.8) * g;
                v[i] = 0.999 * v[i] + (1 - 0.999) * g * g;
                double mh = m[i] / (1 - pow(0.8, step)), vh = v[i] / (1 - pow(0.999, step));
                w[i] -= 0.02 * mh / (sqrt(vh) + 1e-8);
                CHECK_NEAR(values(b.params, "w")[i], w[i], TOL(1e-5, 1e-12));
            }
        }
        bench_close(&b);
    }
}

/* Two parameters, one joint norm: gradients (3) and (4) have length 5. */
static void test_clipping(void)
{
    for (int pass = 0; pass < 2; pass++) {
        bench b;
        bench_open(&b, true);
        xg_optim o;
        memset(&o, 0, sizeof o);
        o.lr = 1;
        o.clip_norm = pass == 0 ? 0.5 : 6;
        xg_tensor *u = xg_param(&b.s, "u", sh(1, 1, 1, 1), XG_INIT_ZERO, 1);
        xg_tensor *v = xg_param(&b.s, "v", sh(1, 1, 1, 1), XG_INIT_ZERO, 1);
        xg_tensor *loss = xg_add(xg_affine(u, 3, 0), xg_affine(v, 4, 0));
        CHECK(xg_optim_step(&o, b.params, loss) == XG_ERR_OK);
        CHECK_NEAR(values(b.params, "u")[0], pass == 0 ? -0.3 : -3, TOL(1e-6, 1e-14));
        CHECK_NEAR(values(b.params, "v")[0], pass == 0 ? -0.4 : -4, TOL(1e-6, 1e-14));
        bench_close(&b);
    }
}

static void test_schedules(void)
{
    xg_optim o;
    memset(&o, 0, sizeof o);
    CHECK_NEAR(xg_optim_lr(NULL, 0), 0.01, 1e-15);
    CHECK_NEAR(xg_optim_lr(&o, 1000), 0.01, 1e-15);
    o.kind = XG_ADAM;
    CHECK_NEAR(xg_optim_lr(&o, 0), 0.001, 1e-15);
    o.lr = 0.8;
    o.warmup = 4;
    CHECK_NEAR(xg_optim_lr(&o, 0), 0.2, 1e-15);
    CHECK_NEAR(xg_optim_lr(&o, 2), 0.6, 1e-15);
    CHECK_NEAR(xg_optim_lr(&o, 3), 0.8, 1e-15);
    CHECK_NEAR(xg_optim_lr(&o, 400), 0.8, 1e-15);
    o.schedule = XG_COSINE;
    o.total = 12;
    CHECK_NEAR(xg_optim_lr(&o, 1), 0.4, 1e-15);
    CHECK_NEAR(xg_optim_lr(&o, 4), 0.8, 1e-15);
    CHECK_NEAR(xg_optim_lr(&o, 6), 0.4 * (1 + sqrt(0.5)), 1e-14);
    CHECK_NEAR(xg_optim_lr(&o, 8), 0.4, 1e-14);
    CHECK_NEAR(xg_optim_lr(&o, 12), 0, 1e-15);
    CHECK_NEAR(xg_optim_lr(&o, 99), 0, 1e-15);
    o.schedule = XG_STEP;
    o.every = 10;
    CHECK_NEAR(xg_optim_lr(&o, 3), 0.8, 1e-15);
    CHECK_NEAR(xg_optim_lr(&o, 10), 0.08, 1e-15);
    o.factor = 0.5;
    CHECK_NEAR(xg_optim_lr(&o, 39), 0.1, 1e-15);

    bench b;
    bench_open(&b, true);
    memset(&o, 0, sizeof o);                    /* and the step uses them */
    o.lr = 1;
    o.warmup = 2;
    xg_optim_step(&o, b.params, linear_loss(&b, 1));
    CHECK_NEAR(values(b.params, "w")[0], 0.75, TOL(1e-6, 1e-14));
    xg_optim_step(&o, b.params, linear_loss(&b, 1));
    CHECK_NEAR(values(b.params, "w")[0], 0.25, TOL(1e-6, 1e-14));
    bench_close(&b);
}

static void test_only_and_slots(void)
{
    bench b;
    bench_open(&b, true);
    xg_optim head, body;
    memset(&head, 0, sizeof head);
    head.lr = 0.5;
    head.momentum = 0.9;
    head.only = "head.";
    head.slot = "head";
    body = head;
    body.only = "body.";
    body.slot = "body";
    for (int i = 0; i < 3; i++) {
        xg_tensor *h = xg_param(&b.s, "head.w", sh(1, 1, 1, 1), XG_INIT_ZERO, 1);
        xg_tensor *v = xg_param(&b.s, "body.w", sh(1, 1, 1, 1), XG_INIT_ZERO, 1);
        CHECK(xg_optim_step(i < 2 ? &head : &body, b.params, xg_add(h, v)) == XG_ERR_OK);
    }
    CHECK_NEAR(values(b.params, "head.w")[0], -0.5 - 0.95, TOL(1e-6, 1e-14));
    CHECK_NEAR(values(b.params, "body.w")[0], -0.5, TOL(1e-6, 1e-14));
    CHECK(xg_optim_steps(&head, b.params) == 2 && xg_optim_steps(&body, b.params) == 1);
    CHECK(xg_optim_steps(NULL, b.params) == 0);
    head.only = "tail.";
    xg_tensor *h = xg_param(&b.s, "head.w", sh(1, 1, 1, 1), XG_INIT_ZERO, 1);
    CHECK(xg_optim_step(&head, b.params, h) == XG_ERR_NAME);
    bench_close(&b);
}

static void test_apply_given_gradients(void)
{
    bench b;
    bench_open(&b, true);
    xg_optim o;
    memset(&o, 0, sizeof o);
    o.lr = 1;
    xg_tensor *leaf[3], *grad[3];
    leaf[0] = xg_param(&b.s, "u", sh(2, 1, 1, 1), XG_INIT_ZERO, 1);
    leaf[1] = xg_param(&b.s, "v", sh(2, 1, 1, 1), XG_INIT_ZERO, 1);
    leaf[2] = leaf[0];
    grad[0] = xg_full(b.tape, sh(2, 1, 1, 1), 1);
    grad[1] = xg_full(b.tape, sh(2, 1, 1, 1), 2);
    grad[2] = grad[0];
    CHECK(xg_optim_apply(&o, b.params, leaf + 1, grad + 1, 2) == XG_ERR_OK);   /* v then u */
    CHECK_NEAR(values(b.params, "u")[1], -1, 0);
    CHECK_NEAR(values(b.params, "v")[1], -2, 0);
    CHECK(xg_optim_apply(&o, b.params, leaf, grad, 3) == XG_ERR_ARGUMENT);     /* u twice */
    xg_clear_error(b.tape);
    grad[0] = xg_full(b.tape, sh(1, 2, 1, 1), 1);
    CHECK(xg_optim_apply(&o, b.params, leaf, grad, 1) == XG_ERR_SHAPE);
    xg_clear_error(b.tape);
    leaf[0] = xg_param(&b.s, "one", sh(1, 1, 1, 1), XG_INIT_ZERO, 1);
    grad[0] = NULL;
    CHECK(xg_optim_apply(&o, b.params, leaf, grad, 1) == XG_ERR_SHAPE);
    xg_clear_error(b.tape);
    leaf[0] = xg_full(b.tape, sh(1, 2, 1, 1), 1);
    CHECK(xg_optim_apply(&o, b.params, leaf, grad, 1) == XG_ERR_ARGUMENT);     /* not a parameter */
    xg_clear_error(b.tape);
    leaf[1] = NULL;
    CHECK(xg_optim_apply(&o, b.params, leaf + 1, grad, 1) == XG_ERR_ARGUMENT);
    CHECK(xg_optim_apply(&o, b.params, leaf, grad, 0) == XG_ERR_ARGUMENT);
    CHECK(xg_optim_apply(&o, b.params, NULL, NULL, 1) == XG_ERR_ARGUMENT);
    CHECK_NEAR(values(b.params, "u")[1], -1, 0);
    CHECK(xg_optim_steps(&o, b.params) == 1);
    bench_close(&b);
}

/* A step that is refused changes no weight, no state, no running statistic and no count. */
static void expect_refusal(bench *b, const xg_optim *o, xg_tensor *loss, xg_code code)
{
    size_t count;
    xg_real *before = snapshot(b->params, &count);
    int64_t steps = xg_optim_steps(o, b->params);
    CHECK(xg_optim_step(o, b->params, loss) == code);
    CHECK_ERROR(xg_tape_error(b->tape), code);
    CHECK(unmoved(b->params, before, count));
    CHECK(xg_optim_steps(o, b->params) == steps);
    free(before);
    xg_tape_reset(b->tape);
}

static void test_refused_steps_change_nothing(void)
{
    bench b;
    bench_open(&b, true);
    xg_optim o;
    memset(&o, 0, sizeof o);
    o.momentum = 0.9;
    xg_tensor *y = xg_batch_norm(&b.s, "bn", norm_input(&b), NULL);
    CHECK(xg_optim_step(&o, b.params, xg_add(xg_sum(y), linear_loss(&b, 1))) == XG_ERR_OK);
    xg_tape_reset(b.tape);

    y = xg_sum(xg_batch_norm(&b.s, "bn", norm_input(&b), NULL));
    expect_refusal(&b, &o, xg_add(y, xg_scalar(b.tape, (double)NAN)), XG_ERR_NONFINITE);
    y = xg_sum(xg_batch_norm(&b.s, "bn", norm_input(&b), NULL));
    expect_refusal(&b, &o, xg_log(xg_affine(y, 0, 0)), XG_ERR_NONFINITE);
    xg_batch_norm(&b.s, "bn", norm_input(&b), NULL);
    expect_refusal(&b, &o, xg_leaf(b.tape, sh(2, 1, 1, 1), NULL), XG_ERR_SHAPE);
    y = xg_sum(xg_batch_norm(&b.s, "bn", norm_input(&b), NULL));
    xg_fail(b.tape, XG_ERR_RULE, "made to fail");
    expect_refusal(&b, &o, y, XG_ERR_RULE);

    /* A finite loss with an infinite gradient: the sentence names the parameter. */
    xg_tensor *w = xg_param(&b.s, "edge", sh(1, 1, 1, 1), XG_INIT_ZERO, 1);
    y = xg_add(xg_sum(xg_batch_norm(&b.s, "bn", norm_input(&b), NULL)), xg_sqrt(w));
    CHECK(isfinite(xg_item(y)));
    size_t count;
    xg_real *before = snapshot(b.params, &count);
    CHECK(xg_optim_step(&o, b.params, y) == XG_ERR_NONFINITE);
    CHECK(strstr(xg_tape_error(b.tape)->text, "'edge'") != NULL);
    CHECK(unmoved(b.params, before, count));
    free(before);
    CHECK(xg_optim_step(&o, NULL, y) != XG_ERR_OK);
    CHECK(xg_optim_step(&o, b.params, NULL) != XG_ERR_OK);
    bench_close(&b);
}

static void test_wrong_options_are_refused(void)
{
    bench b;
    bench_open(&b, true);
    linear_loss(&b, 1);
    for (int i = 0; i < 12; i++) {
        xg_optim o;
        memset(&o, 0, sizeof o);
        switch (i) {
        case 0: o.lr = -1; break;
        case 1: o.lr = (double)NAN; break;
        case 2: o.momentum = 1; break;
        case 3: o.nesterov = true; break;
        case 4: o.beta1 = 1; break;
        case 5: o.beta2 = -0.5; break;
        case 6: o.eps = -1; break;
        case 7: o.weight_decay = -1; break;
        case 8: o.clip_norm = (double)NAN; break;
        case 9: o.schedule = XG_COSINE; break;
        case 10: o.schedule = XG_STEP; break;
        default: o.warmup = -1; break;
        }
        expect_refusal(&b, &o, linear_loss(&b, 1), XG_ERR_ARGUMENT);
    }
    bench_close(&b);
}

/* Out of memory for the optimiser's state, at every size of buffer: all or nothing. */
static void test_no_memory_for_state(void)
{
    static unsigned char memory[1 << 16];
    int refused = 0, taken = 0;
    for (size_t bytes = 4096; bytes <= sizeof memory; bytes += 256) {
        xg_config config;
        memset(&config, 0, sizeof config);
        config.fixed = memory;
        config.fixed_bytes = bytes;
        bench b;
        b.tape = xg_tape_new(NULL);
        b.params = xg_params_new(&config);
        REQUIRE(b.tape != NULL);
        b.rng = xg_rng_seed(7);
        b.s = xg_scope_new(b.tape, b.params, &b.rng, true);
        xg_mlp_options m;
        memset(&m, 0, sizeof m);
        m.hidden = 16;
        int label[2] = { 1, 2 };
        xg_tensor *x = xg_randn(b.tape, sh(2, 20, 1, 1), &b.rng);
        xg_tensor *loss = xg_cross_entropy(xg_mlp(&b.s, x, &m), label, NULL);
        xg_optim o;
        memset(&o, 0, sizeof o);
        o.kind = XG_ADAM;
        if (xg_failed(b.tape)) {                /* not even the weights fitted */
            CHECK_ERROR(xg_tape_error(b.tape), b.params ? XG_ERR_MEMORY : XG_ERR_ARGUMENT);
        } else {
            size_t count;
            xg_real *before = snapshot(b.params, &count);
            xg_code code = xg_optim_step(&o, b.params, loss);
            CHECK(code == XG_ERR_OK || code == XG_ERR_MEMORY);
            CHECK(unmoved(b.params, before, count) == (code != XG_ERR_OK));
            CHECK(xg_optim_steps(&o, b.params) == (code == XG_ERR_OK));
            if (code == XG_ERR_OK) taken++;
            else refused++;
            free(before);
        }
        bench_close(&b);
    }
    CHECK(refused > 0 && taken > 0);
}

/* Five steps at once, or three, a checkpoint, a new store, and two: the same bits. */
static void train_steps(bench *b, const xg_optim *o, int from, int to)
{
    for (int k = from; k < to; k++) {
        xg_rng rng = xg_rng_seed(100 + (uint64_t)k);
        xg_mark mark = xg_tape_mark(b->tape);
        int label[4] = { 0, 1, 2, 0 };
        xg_cnn_options net;
        memset(&net, 0, sizeof net);
        net.width = 4;
        net.layers = 2;
        net.classes = 3;
        net.batch_norm = true;
        xg_tensor *x = xg_randn(b->tape, sh(4, 3, 8, 8), &rng);
        xg_tensor *loss = xg_cross_entropy(xg_cnn(&b->s, x, &net), label, NULL);
        CHECK(xg_optim_step(o, b->params, loss) == XG_ERR_OK);
        xg_tape_release(b->tape, mark);
    }
}

static void test_resume_is_bit_exact(void)
{
    char path[64];                              /* several builds of this test may run at once */
    snprintf(path, sizeof path, "test_models.%lx.tmp",
             (unsigned long)time(NULL) ^ (unsigned long)(uintptr_t)path);
    for (int kind = XG_SGD; kind <= XG_ADAMW; kind++) {
        bench a, b, c;
        xg_optim o;
        memset(&o, 0, sizeof o);
        o.kind = (xg_optim_kind)kind;
        o.momentum = kind == XG_SGD ? 0.9 : 0;
        o.nesterov = kind == XG_SGD;
        o.weight_decay = 0.01;
        o.clip_norm = 1;
        o.schedule = XG_COSINE;
        o.total = 6;
        o.warmup = 1;
        bench_open(&a, true);
        bench_open(&b, true);
        bench_open(&c, true);
        train_steps(&a, &o, 0, 5);
        train_steps(&b, &o, 0, 3);
        CHECK(xg_checkpoint_save(b.params, path, NULL, 0) == XG_ERR_OK);
        xg_rng_next(&c.rng);                    /* other initial weights */
        train_steps(&c, &o, 0, 1);
        int notes = 0;
        CHECK(xg_checkpoint_load(c.params, path, NULL, 0, &notes) == XG_ERR_OK);
        if (xg_params_error(c.params)->code) printf("  %s\n", xg_params_error(c.params)->text);
        CHECK(xg_optim_steps(&o, c.params) == 3);
        train_steps(&c, &o, 3, 5);
        size_t count;
        xg_real *expected = snapshot(a.params, &count);
        CHECK(unmoved(c.params, expected, count));
        CHECK(!unmoved(b.params, expected, count));
        free(expected);
        bench_close(&a);
        bench_close(&b);
        bench_close(&c);
    }
    remove(path);
}

TEST_MAIN(
    TEST(test_store_adds_and_finds)
    TEST(test_store_refuses)
    TEST(test_store_freezes_and_clones)
    TEST(test_store_in_a_fixed_buffer)
    TEST(test_scope_names)
    TEST(test_param_refuses)
    TEST(test_layers_leave_the_store_alone_on_a_failed_tape)
    TEST(test_initial_values)
    TEST(test_leaves_of_this_tape)
    TEST(test_leaves_of_a_freed_store)
    TEST(test_conv_and_dense_by_loops)
    TEST(test_conv_refuses)
    TEST(test_batch_norm_by_hand)
    TEST(test_batch_norm_switches)
    TEST(test_batch_norm_commits_once)
    TEST(test_uncentred_norm)
    TEST(test_dropout)
    TEST(test_bcos_by_loops)
    TEST(test_bcos_dense_is_a_1x1_convolution)
    TEST(test_bcos_input)
    TEST(test_bcos_homogeneity)
    TEST(test_bcos_contributions_are_complete)
    TEST(test_bcos_training_through_maps)
    TEST(test_x_net_maps)
    TEST(test_resnet_counts)
    TEST(test_resnet_names_and_stages)
    TEST(test_resnet50_bottleneck)
    TEST(test_cifar_shortcut)
    TEST(test_resnet_refuses)
    TEST(test_squeezenet_and_mobilenet)
    TEST(test_mlp_and_cnn)
    TEST(test_losses_fall)
    TEST(test_sgd_by_hand)
    TEST(test_adam_by_hand)
    TEST(test_clipping)
    TEST(test_schedules)
    TEST(test_only_and_slots)
    TEST(test_apply_given_gradients)
    TEST(test_refused_steps_change_nothing)
    TEST(test_wrong_options_are_refused)
    TEST(test_no_memory_for_state)
    TEST(test_resume_is_bit_exact)
)
