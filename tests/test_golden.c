/* test_golden.c - the library against reference vectors that another framework made in float64.
 *
 * Each file of tests/vectors holds a small net: inputs, weights, and what must come out of it (see
 * tools/golden.py for every name). Here the nets are built again from the public layers and filled
 * with those weights; every number is compared: max|a-b| <= tolerance max|b|, tensor by tensor. */
#include "test.h"

#ifndef XG_VECTORS
#define XG_VECTORS "tests/vectors/"
#endif

enum { MAX_LEAVES = 32, KEY = 192 };

/* What the tests of one net share. */
typedef struct golden {
    xg_params  *file;       /* the vectors, under the file's names                                */
    xg_params  *net;        /* the net's own store                                                */
    xg_tape    *tape;
    const char *mode;       /* "train/", "eval/" or "": where this run stands in the file         */
    int         label[8];
    xg_rng      rng;
} golden;

/* ---- reading and comparing ------------------------------------------------------------------- */

static xg_params *load_vectors(const char *name)
{
    char path[KEY];
    xg_load_options o;
    xg_load_report report;
    xg_params *file = xg_params_new(NULL);
    REQUIRE(file != NULL);
    memset(&o, 0, sizeof o);
    o.create = true;
    snprintf(path, sizeof path, "%s%s.safetensors", XG_VECTORS, name);
    if (xg_params_load(file, path, &o, &report) != XG_ERR_OK) {
        test_fail_(__FILE__, __LINE__, xg_params_error(file)->text);
        xg_params_free(file);
        longjmp(test_now.leave, 1);
    }
    CHECK(report.loaded == xg_params_count(file));
    return file;
}

/* The numbers called `key` in the file, which must be there. */
static xg_real *stored(golden *g, const char *key, size_t *count)
{
    int i = xg_params_find(g->file, key);
    if (i < 0) printf("  not in the vectors: %s\n", key);
    REQUIRE(i >= 0);
    if (count) *count = xg_shape_size(xg_params_shape(g->file, i));
    return xg_params_data(g->file, i);
}

static xg_tensor *stored_leaf(golden *g, const char *key)
{
    xg_shape s = xg_params_shape(g->file, xg_params_find(g->file, key));
    return xg_leaf(g->tape, s, stored(g, key, NULL));
}

/* max|a-b| / max|b|; infinite when anything is NaN, so that a NaN never passes. */
static double relative_error(const xg_real *a, const xg_real *b, size_t count)
{
    double worst = 0, scale = 1e-30;
    for (size_t i = 0; i < count; i++) {
        double difference = fabs((double)a[i] - (double)b[i]);
        if (!(difference <= 1e300)) return HUGE_VAL;
        if (difference > worst) worst = difference;
        if (fabs((double)b[i]) > scale) scale = fabs((double)b[i]);
    }
    return worst / scale;
}

static void check_numbers(golden *g, const char *key, const xg_real *got, size_t count)
{
    size_t expected = 0;
    const xg_real *want = stored(g, key, &expected);
    CHECK(count == expected);
    if (count != expected) return;
    double error = relative_error(got, want, count);
    if (error <= TOL(1e-5, 1e-10)) return;
    test_fail_(__FILE__, __LINE__, key);
    printf("      relative error %.3g; first numbers %.9g, expected %.9g\n", error,
           (double)got[0], (double)want[0]);
}

/* The tensor equals MODE/key. */
static void check_tensor(golden *g, const char *key, xg_tensor *got)
{
    char full[KEY];
    snprintf(full, sizeof full, "%s%s", g->mode, key);
    if (xg_failed(g->tape)) printf("  tape: %s\n", xg_tape_error(g->tape)->text);
    REQUIRE(!xg_failed(g->tape));
    check_numbers(g, full, xg_data(got), xg_size(got));
}

/* Gradients of `loss` for every trainable weight equal MODE/kind/NAME. */
static void check_gradients(golden *g, const char *kind, xg_tensor *loss)
{
    xg_tensor *leaf[MAX_LEAVES], *grad[MAX_LEAVES];
    char key[KEY];
    int count = xg_params_leaves(g->net, g->tape, leaf, MAX_LEAVES), k = 0;
    REQUIRE(count > 0 && count <= MAX_LEAVES);
    xg_grads(loss, NULL, leaf, count, NULL, grad);
    for (int i = 0; i < xg_params_count(g->net); i++) {
        if (!xg_params_trainable(g->net, i)) continue;
        REQUIRE(k < count);
        snprintf(key, sizeof key, "%s/%s", kind, xg_params_name(g->net, i));
        check_tensor(g, key, grad[k++]);
    }
    CHECK(k == count);
}

/* ---- setting up ------------------------------------------------------------------------------ */

/* Builds the net once, which creates its weights, and overwrites them all with the file's. */
static void fill_net(golden *g, xg_net net, void *user)
{
    char key[KEY];
    int filled = 0, given = 0;
    xg_scope s = xg_scope_new(g->tape, g->net, &g->rng, false);
    s.user = user;
    net(&s, stored_leaf(g, "x"));
    CHECK_OK(g->tape);
    for (int i = 0; i < xg_params_count(g->net); i++) {
        size_t count = 0, size = xg_shape_size(xg_params_shape(g->net, i));
        snprintf(key, sizeof key, "param/%s", xg_params_name(g->net, i));
        const xg_real *from = stored(g, key, &count);
        REQUIRE(count == size);
        memcpy(xg_params_data(g->net, i), from, size * sizeof(xg_real));
        filled++;
    }
    for (int i = 0; i < xg_params_count(g->file); i++)
        given += strncmp(xg_params_name(g->file, i), "param/", 6) == 0;
    CHECK(filled == given);
    xg_tape_reset(g->tape);
}

static golden golden_new(const char *name, const char *mode, xg_net net, void *user)
{
    golden g;
    size_t count = 0;
    memset(&g, 0, sizeof g);
    g.file = load_vectors(name);
    g.net = xg_params_new(NULL);
    g.tape = xg_tape_new(NULL);
    g.mode = mode;
    g.rng = xg_rng_seed(1);
    REQUIRE(g.net != NULL && g.tape != NULL);
    const xg_real *label = stored(&g, "label", &count);
    REQUIRE(count <= 8);
    for (size_t i = 0; i < count; i++) g.label[i] = (int)label[i];
    fill_net(&g, net, user);
    return g;
}

static void golden_free(golden *g)
{
    xg_tape_free(g->tape);
    xg_params_free(g->net);
    xg_params_free(g->file);
}

/* One optimiser step commits the running statistics; they equal MODE/running/NAME. */
static void check_running(golden *g, xg_tensor *loss)
{
    xg_optim o;
    char key[KEY];
    int buffers = 0;
    memset(&o, 0, sizeof o);
    CHECK(xg_optim_step(&o, g->net, loss) == XG_ERR_OK);
    for (int i = 0; i < xg_params_count(g->net); i++) {
        const char *name = xg_params_name(g->net, i);
        if (!strstr(name, "running_")) continue;
        snprintf(key, sizeof key, "%srunning/%s", g->mode, name);
        check_numbers(g, key, xg_params_data(g->net, i), xg_shape_size(xg_params_shape(g->net, i)));
        buffers++;
    }
    CHECK(buffers > 0);
}

static xg_window window(int k, int stride, int pad)
{
    xg_window w;
    memset(&w, 0, sizeof w);
    w.kh = w.kw = k;
    w.stride = stride;
    w.pad = pad;
    return w;
}

/* ---- 1. convolutions, batch norm, ReLU, a residual block ------------------------------------- */

static xg_tensor *conv(xg_scope *s, const char *name, xg_tensor *x, int channels, int k, int stride,
                       int pad)
{
    xg_conv_options o;
    memset(&o, 0, sizeof o);
    o.window = window(k, stride, pad);
    return xg_conv(s, name, x, channels, &o);
}

static xg_tensor *conv_net(xg_scope *s, xg_tensor *x)
{
    xg_tensor *y = xg_relu(xg_batch_norm(s, "bn1", conv(s, "conv1", x, 6, 3, 1, 1), NULL));
    y = xg_maxpool(y, window(3, 2, 1));

    xg_scope b = xg_in_at(s, "layer1", 0);
    xg_tensor *z = conv(&b, "conv1", y, 8, 3, 2, 1);
    z = xg_relu(xg_batch_norm(&b, "bn1", z, NULL));
    z = xg_batch_norm(&b, "bn2", conv(&b, "conv2", z, 8, 3, 1, 1), NULL);
    y = xg_batch_norm(&b, "downsample.1", conv(&b, "downsample.0", y, 8, 1, 2, 0), NULL);
    y = xg_name(xg_relu(xg_add(z, y)), "layer1");
    return xg_dense(s, "fc", xg_global_avgpool(y), 5, true);
}

/* Other choices on the same forward pass: RRR* on the input map, Grad-CAM with constant weights. */
static void check_conv_variants(golden *g, xg_tensor *score, xg_tensor *map, xg_tensor *mask)
{
    xg_guide_options o;
    xg_grad_cam_options cam;
    memset(&o, 0, sizeof o);
    memset(&cam, 0, sizeof cam);

    o.loss = XG_LOSS_RRR;
    xg_tensor *rrr = xg_guide(map, mask, &o);
    check_tensor(g, "rrr", rrr);
    check_gradients(g, "grad_rrr", rrr);

    o.loss = XG_LOSS_L1;
    cam.stop_gradient_weights = true;
    xg_tensor *constant = xg_grad_cam(score, xg_find(g->tape, "layer1"), &cam);
    check_tensor(g, "cam", constant);
    check_gradients(g, "grad_cam_stop", xg_guide(constant, mask, &o));
}

static void check_conv_net(const char *mode, bool train)
{
    golden g = golden_new("conv_net", mode, conv_net, NULL);
    xg_scope s = xg_scope_new(g.tape, g.net, &g.rng, train);
    xg_tensor *x = stored_leaf(&g, "x"), *mask = stored_leaf(&g, "mask");
    xg_guide_options o;
    memset(&o, 0, sizeof o);

    xg_tensor *logits = conv_net(&s, x);
    xg_tensor *score = xg_pick(logits, g.label);
    xg_tensor *class_loss = xg_cross_entropy(logits, g.label, NULL);
    check_tensor(&g, "logits", logits);
    check_tensor(&g, "class_loss", class_loss);
    check_tensor(&g, "input_grad", xg_grad(score, x));

    xg_tensor *map = xg_input_x_gradient(score, x);
    o.loss = XG_LOSS_ENERGY;
    xg_tensor *energy = xg_guide(map, mask, &o);
    xg_tensor *total = xg_add(class_loss, xg_mul(stored_leaf(&g, "lambda"), energy));
    check_tensor(&g, "ixg_map", map);
    check_tensor(&g, "energy", energy);
    check_gradients(&g, "grad", total);
    check_gradients(&g, "grad_energy", energy);

    xg_tensor *cam = xg_grad_cam(score, xg_find(g.tape, "layer1"), NULL);
    o.loss = XG_LOSS_L1;
    xg_tensor *cam_loss = xg_guide(cam, mask, &o);
    check_tensor(&g, "cam", cam);
    check_tensor(&g, "cam_loss", cam_loss);
    check_gradients(&g, "grad_cam", cam_loss);
    check_conv_variants(&g, score, map, mask);

    if (train) check_running(&g, total);
    CHECK_OK(g.tape);
    golden_free(&g);
}

static void test_conv_net_train(void) { check_conv_net("train/", true); }
static void test_conv_net_eval(void)  { check_conv_net("eval/", false); }

/* ---- 2. B-cos -------------------------------------------------------------------------------- */

typedef struct bcos_setting { bool detach; double logit_bias; } bcos_setting;

static xg_tensor *bcos(xg_scope *s, const char *name, const char *norm, xg_tensor *x, int channels,
                       int k, int stride, int pad)
{
    xg_bcos_options o;
    xg_norm_options n;
    memset(&o, 0, sizeof o);
    memset(&n, 0, sizeof n);
    o.window = window(k, stride, pad);
    o.detach = ((const bcos_setting *)s->user)->detach;
    n.uncentred = true;
    x = xg_bcos_conv(s, name, x, channels, &o);
    return norm ? xg_batch_norm(s, norm, x, &n) : x;
}

/* x is coded already when it has six channels: explanations are taken there. */
static xg_tensor *bcos_net(xg_scope *s, xg_tensor *x)
{
    if (xg_shape_of(x).c == 3) x = xg_bcos_input(x);
    xg_tensor *y = bcos(s, "conv1", "bn1", x, 7, 3, 1, 1);
    y = xg_avgpool(y, window(3, 2, 1));

    xg_scope b = xg_in_at(s, "layer1", 0);
    xg_tensor *z = bcos(&b, "conv1", "bn1", y, 8, 3, 2, 1);
    z = bcos(&b, "conv2", "bn2", z, 8, 3, 1, 1);
    y = bcos(&b, "downsample.0", "downsample.1", y, 8, 1, 2, 0);
    y = bcos(s, "fc", NULL, xg_add(z, y), 4, 1, 1, 0);
    return xg_affine(xg_global_avgpool(y), 1, ((const bcos_setting *)s->user)->logit_bias);
}

/* BCE + lambda Energy of the contribution map, compared on the way. */
static xg_tensor *bcos_total(golden *g, bcos_setting *setting, bool train, xg_tensor **energy)
{
    xg_scope s = xg_scope_new(g->tape, g->net, &g->rng, train);
    xg_tensor *x = xg_bcos_input(stored_leaf(g, "x")), *mask = stored_leaf(g, "mask");
    xg_guide_options o;
    memset(&o, 0, sizeof o);
    o.loss = XG_LOSS_ENERGY;
    s.user = setting;
    setting->logit_bias = (double)*stored(g, "logit_bias", NULL);

    xg_tensor *logits = bcos_net(&s, x);
    xg_shape k = xg_shape_of(logits);
    xg_tensor *score = xg_pick(logits, g->label);
    xg_tensor *target = xg_one_hot(g->tape, g->label, k.n, k.c);
    xg_tensor *class_loss = xg_bce_with_logits(logits, target);
    xg_tensor *map = xg_bcos_map(score, x);
    *energy = xg_guide(map, mask, &o);
    check_tensor(g, "logits", logits);
    check_tensor(g, "class_loss", class_loss);
    check_tensor(g, "map", map);
    check_tensor(g, "energy", *energy);
    if (!setting->detach) {
        check_tensor(g, "input_grad", xg_grad(score, x));
        check_tensor(g, "ixg_map", xg_input_x_gradient(score, x));
    }
    return xg_add(class_loss, xg_mul(stored_leaf(g, "lambda"), *energy));
}

static void check_bcos_net(const char *mode, bool train)
{
    bcos_setting setting = { false, 0 };
    xg_tensor *energy = NULL;
    golden g = golden_new("bcos_net", mode, bcos_net, &setting);

    xg_tensor *total = bcos_total(&g, &setting, train, &energy);
    check_gradients(&g, "grad", total);
    check_gradients(&g, "grad_energy", energy);
    if (train) check_running(&g, total);
    CHECK_OK(g.tape);
    golden_free(&g);
}

/* Detaching leaves every value as it was and changes the gradient: both, to the last digit. */
static void check_bcos_detached(const char *mode, bool train)
{
    bcos_setting setting = { true, 0 };
    xg_tensor *energy = NULL;
    char key[2][KEY];
    size_t count = 0;
    golden g = golden_new("bcos_net", mode, bcos_net, &setting);

    check_gradients(&g, "grad_detached", bcos_total(&g, &setting, train, &energy));
    snprintf(key[0], KEY, "%sgrad/conv1.weight", mode);
    snprintf(key[1], KEY, "%sgrad_detached/conv1.weight", mode);
    const xg_real *full = stored(&g, key[0], &count);
    CHECK(relative_error(stored(&g, key[1], NULL), full, count) > 0.01);
    CHECK_OK(g.tape);
    golden_free(&g);
}

static void test_bcos_net_train(void)      { check_bcos_net("train/", true); }
static void test_bcos_net_eval(void)       { check_bcos_net("eval/", false); }
static void test_bcos_detached_train(void) { check_bcos_detached("train/", true); }
static void test_bcos_detached_eval(void)  { check_bcos_detached("eval/", false); }

/* ---- 3. third derivatives -------------------------------------------------------------------- */

static xg_tensor *smooth_net(xg_scope *s, xg_tensor *x)
{
    xg_tensor *y = xg_batch_norm(s, "bn1", conv(s, "conv1", x, 4, 3, 1, 1), NULL);
    y = xg_tanh(conv(s, "conv2", xg_softplus(y), 5, 3, 2, 1));
    return xg_dense(s, "fc", y, 3, true);
}

static void test_third_order(void)
{
    golden g = golden_new("third_order", "", smooth_net, NULL);
    xg_scope s = xg_scope_new(g.tape, g.net, &g.rng, true);
    xg_tensor *x = stored_leaf(&g, "x");

    xg_tensor *f = xg_sum(xg_pick(smooth_net(&s, x), g.label));
    xg_tensor *dx_f = xg_grad(f, x);
    xg_tensor *q = xg_dot(dx_f, dx_f);
    xg_tensor *dx_q = xg_grad(q, x);
    xg_tensor *r = xg_dot(dx_q, dx_q);
    check_tensor(&g, "f", f);
    check_tensor(&g, "dx_f", dx_f);
    check_tensor(&g, "q", q);
    check_tensor(&g, "dx_q", dx_q);
    check_tensor(&g, "r", r);
    check_gradients(&g, "grad_q", q);
    check_gradients(&g, "grad_r", r);
    CHECK_OK(g.tape);
    golden_free(&g);
}

/* ---- 4. optimisers --------------------------------------------------------------------------- */

typedef struct rule {
    const char   *key;      /* of the trajectory in the file                                      */
    xg_optim_kind kind;
    double        lr, momentum;
    bool          nesterov;
    double        beta1, beta2, eps, weight_decay;      /* 0: the library's default               */
} rule;

/* Five steps on the file's gradients, comparing the weights after each. */
static void check_rule(golden *g, const rule *r)
{
    size_t size = 0, total = 0;
    const xg_real *start = stored(g, "w", &size), *sequence = stored(g, "grad", &total);
    const xg_real *want = stored(g, r->key, NULL);
    xg_shape shape = xg_shape4(1, (int)size, 1, 1);
    xg_optim o;
    memset(&o, 0, sizeof o);
    o.kind = r->kind;
    o.lr = r->lr;
    o.momentum = r->momentum;
    o.nesterov = r->nesterov;
    o.beta1 = r->beta1;
    o.beta2 = r->beta2;
    o.eps = r->eps;
    o.weight_decay = r->weight_decay;

    g->net = xg_params_new(NULL);
    REQUIRE(g->net != NULL);
    int w = xg_params_add(g->net, "w", shape, true);
    REQUIRE(w >= 0);
    memcpy(xg_params_data(g->net, w), start, size * sizeof(xg_real));
    for (size_t i = 0; i < total / size; i++) {
        xg_scope s = xg_scope_new(g->tape, g->net, &g->rng, true);
        xg_tensor *leaf = xg_param(&s, "w", shape, XG_INIT_ZERO, 1);
        xg_tensor *grad = xg_leaf(g->tape, shape, sequence + i * size);
        CHECK(xg_optim_apply(&o, g->net, &leaf, &grad, 1) == XG_ERR_OK);
        double error = relative_error(xg_params_data(g->net, w), want + i * size, size);
        if (!(error <= TOL(1e-5, 1e-10))) {
            test_fail_(__FILE__, __LINE__, r->key);
            printf("      step %d, relative error %.3g\n", (int)i + 1, error);
        }
        xg_tape_reset(g->tape);
    }
    CHECK(xg_optim_steps(&o, g->net) == 5);
    xg_params_free(g->net);
}

static void test_optimisers(void)
{
    static const rule rules[] = {
        { "sgd/w",                XG_SGD,   0.10, 0.0, false, 0.0, 0.00, 0.0,  0.00 },
        { "sgd_momentum/w",       XG_SGD,   0.10, 0.9, false, 0.0, 0.00, 0.0,  0.00 },
        { "sgd_momentum_decay/w", XG_SGD,   0.10, 0.9, false, 0.0, 0.00, 0.0,  0.05 },
        { "sgd_nesterov/w",       XG_SGD,   0.10, 0.9, true,  0.0, 0.00, 0.0,  0.00 },
        { "sgd_nesterov_decay/w", XG_SGD,   0.10, 0.9, true,  0.0, 0.00, 0.0,  0.05 },
        { "adam/w",               XG_ADAM,  0.01, 0.0, false, 0.0, 0.00, 0.0,  0.00 },
        { "adam_decay/w",         XG_ADAM,  0.01, 0.0, false, 0.8, 0.95, 1e-6, 0.05 },
        { "adamw/w",              XG_ADAMW, 0.01, 0.0, false, 0.0, 0.00, 0.0,  0.05 },
    };
    golden g;
    memset(&g, 0, sizeof g);
    g.file = load_vectors("optim");
    g.tape = xg_tape_new(NULL);
    g.rng = xg_rng_seed(1);
    REQUIRE(g.tape != NULL);
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) check_rule(&g, &rules[i]);
    xg_tape_free(g.tape);
    xg_params_free(g.file);
}

TEST_MAIN(
    TEST(test_conv_net_train)
    TEST(test_conv_net_eval)
    TEST(test_bcos_net_train)
    TEST(test_bcos_net_eval)
    TEST(test_bcos_detached_train)
    TEST(test_bcos_detached_eval)
    TEST(test_third_order)
    TEST(test_optimisers)
)
