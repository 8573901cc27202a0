/* test_attribute.c - explanations against closed forms, against
 * each other, and as things to train through: derivatives of losses on maps to third order. */
#include "test.h"

/* ---- small nets from bare operations --------------------------------------------------------- */

static xg_window window3(void)
{
    xg_window k;
    memset(&k, 0, sizeof k);
    k.pad = 1;
    return k;
}

static xg_window window1(void)
{
    xg_window k;
    memset(&k, 0, sizeof k);
    return k;
}

static xg_window pool2(void)
{
    xg_window k;
    memset(&k, 0, sizeof k);
    k.kh = k.kw = k.stride = 2;
    return k;
}

static double map_sum(xg_tensor *map, int sample)
{
    xg_shape s = xg_shape_of(map);
    size_t plane = (size_t)s.c * (size_t)s.h * (size_t)s.w;
    const xg_real *data = xg_data(map);
    double sum = 0;
    for (size_t i = 0; i < plane; i++) sum += (double)data[(size_t)sample * plane + i];
    return sum;
}

/* The largest |a - b|; infinite when shapes differ or anything is NaN. */
static double distance(xg_tensor *a, xg_tensor *b)
{
    double worst = 0;
    if (xg_failed(xg_tape_of(a)) || !xg_shape_same(xg_shape_of(a), xg_shape_of(b))) return HUGE_VAL;
    for (size_t i = 0; i < xg_size(a); i++) {
        double d = fabs((double)xg_data(a)[i] - (double)xg_data(b)[i]);
        if (!(d <= worst)) worst = d <= 1e300 ? d : HUGE_VAL;
    }
    return worst;
}

static double largest(xg_tensor *a)
{
    return distance(a, xg_leaf(xg_tape_of(a), xg_shape_of(a), NULL));
}

/* ---- gradients and input times gradient ------------------------------------------------------ */

/* logits = W x: the gradient of a logit is its row of W, whatever x is. */
static void test_gradient_of_a_linear_net(void)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_rng rng = xg_rng_seed(1);
    const int label[2] = { 2, 0 };
    xg_tensor *x = xg_randn(t, xg_shape4(2, 2, 3, 4), &rng);
    xg_tensor *w = xg_randn(t, xg_shape4(3, 2, 3, 4), &rng);
    xg_tensor *score = xg_pick(xg_conv2d(x, w, window1()), label);
    xg_tensor *map = xg_gradient(score, x), *ixg = xg_input_x_gradient(score, x);
    CHECK_OK(t);
    REQUIRE(xg_shape_same(xg_shape_of(map), xg_shape4(2, 1, 3, 4)));
    REQUIRE(xg_shape_same(xg_shape_of(ixg), xg_shape4(2, 1, 3, 4)));
    for (int n = 0; n < 2; n++) {
        for (int p = 0; p < 12; p++) {
            const xg_real *row = xg_data(w) + 24 * label[n] + p, *in = xg_data(x) + 24 * n + p;
            CHECK_NEAR(xg_data(map)[12 * n + p], row[0] + row[12], TOL(1e-6, 1e-14));
            CHECK_NEAR(xg_data(ixg)[12 * n + p], row[0] * in[0] + row[12] * in[12],
                       TOL(1e-6, 1e-14));
        }
    }
    xg_tape_free(t);
}

/* What the score does not depend on has a map of zeros, and no error. */
static void test_gradient_of_something_else(void)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_rng rng = xg_rng_seed(2);
    xg_tensor *x = xg_randn(t, xg_shape4(1, 2, 2, 2), &rng);
    xg_tensor *y = xg_randn(t, xg_shape4(1, 2, 2, 2), &rng);
    CHECK(largest(xg_gradient(xg_sum(xg_square(y)), x)) == 0);
    CHECK_OK(t);
    xg_tape_free(t);
}

/* A net with max-pooling, without or with a bias at the head; s->user points to that choice. */
static xg_tensor *relu_net(xg_scope *s, xg_tensor *x)
{
    xg_tensor *w1 = xg_param(s, "w1", xg_shape4(6, 3, 3, 3), XG_INIT_KAIMING, 1);
    xg_tensor *w2 = xg_param(s, "w2", xg_shape4(8, 6, 3, 3), XG_INIT_KAIMING, 1);
    xg_tensor *fc = xg_param(s, "fc", xg_shape4(4, 8, 1, 1), XG_INIT_KAIMING, 1);
    xg_tensor *u = xg_maxpool(xg_relu(xg_conv2d(x, w1, window3())), pool2());
    u = xg_name(xg_relu(xg_conv2d(u, w2, window3())), "features");
    xg_tensor *logits = xg_conv2d(xg_global_avgpool(u), fc, window1());
    if (!s->user) return logits;
    return xg_add(logits, xg_param(s, "bias", xg_shape4(1, 4, 1, 1), XG_INIT_KAIMING, 1));
}

/* O7: without biases the net is homogeneous: the map adds up to the logit, and integrated gradients
 * from zero are the same map, however fine the steps. */
static void test_bias_free_net(void)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_params *params = xg_params_new(NULL);
    xg_rng rng = xg_rng_seed(3);
    xg_scope s = xg_scope_new(t, params, &rng, false);
    const int label[2] = { 1, 3 };
    xg_tensor *x = xg_randn(t, xg_shape4(2, 3, 8, 8), &rng);
    xg_tensor *score = xg_pick(relu_net(&s, x), label);
    xg_tensor *map = xg_input_x_gradient(score, x);
    xg_tensor *inner = xg_input_x_gradient(score, xg_find(t, "features"));
    xg_path_options o;
    memset(&o, 0, sizeof o);
    o.steps = 200;
    xg_tensor *path = xg_integrated_gradients(&s, relu_net, x, label, &o);
    CHECK_OK(t);
    for (int n = 0; n < 2; n++) {
        CHECK_NEAR(map_sum(map, n), xg_data(score)[n], TOL(1e-5, 1e-12));
        CHECK_NEAR(map_sum(inner, n), xg_data(score)[n], TOL(1e-5, 1e-12));
        CHECK_NEAR(map_sum(path, n), xg_data(score)[n], TOL(1e-5, 1e-10));
    }
    CHECK_NEAR(distance(map, path), 0, TOL(1e-5, 1e-10));
    CHECK(largest(map) > 1e-3);
    xg_params_free(params);
    xg_tape_free(t);
}

/* O8: with a bias at the head the map adds up to the logit without it. */
static void test_bias_at_the_head(void)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_params *params = xg_params_new(NULL);
    xg_rng rng = xg_rng_seed(4);
    xg_scope s = xg_scope_new(t, params, &rng, false);
    const int label[2] = { 0, 2 };
    s.user = &s;
    xg_tensor *x = xg_randn(t, xg_shape4(2, 3, 8, 8), &rng);
    xg_tensor *score = xg_pick(relu_net(&s, x), label);
    xg_tensor *map = xg_input_x_gradient(score, x);
    const xg_real *bias = xg_params_data(params, xg_params_find(params, "bias"));
    CHECK_OK(t);
    for (int n = 0; n < 2; n++) {
        CHECK_NEAR(map_sum(map, n), xg_data(score)[n] - bias[label[n]], TOL(1e-5, 1e-12));
        CHECK(fabs((double)bias[label[n]]) > 1e-3);
    }
    xg_params_free(params);
    xg_tape_free(t);
}

/* A batch is explained in one sweep; each sample gets the map that it gets alone. */
static void test_batch_equals_singles(void)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_params *params = xg_params_new(NULL);
    xg_rng rng = xg_rng_seed(5);
    xg_scope s = xg_scope_new(t, params, &rng, false);
    const int label[3] = { 1, 3, 0 };
    xg_tensor *x = xg_randn(t, xg_shape4(3, 3, 8, 8), &rng);
    xg_tensor *map = xg_input_x_gradient(xg_pick(relu_net(&s, x), label), x);
    for (int n = 0; n < 3; n++) {
        xg_tensor *one = xg_slice(x, xg_shape4(n, 0, 0, 0), xg_shape4(1, 3, 8, 8));
        xg_tensor *alone = xg_input_x_gradient(xg_pick(relu_net(&s, one), label + n), one);
        xg_tensor *mine = xg_slice(map, xg_shape4(n, 0, 0, 0), xg_shape4(1, 1, 8, 8));
        CHECK_NEAR(distance(alone, mine), 0, TOL(1e-6, 1e-14));
    }
    CHECK_OK(t);
    xg_params_free(params);
    xg_tape_free(t);
}

/* ---- Grad-CAM -------------------------------------------------------------------------------- */

/* O9: a 1x1 convolution w and global pooling over u: A = relu(w_k u) / (h w) exactly. */
static void test_grad_cam_closed_form(void)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_rng rng = xg_rng_seed(6);
    const int label[2] = { 1, 0 };
    xg_tensor *u = xg_randn(t, xg_shape4(2, 3, 4, 5), &rng);
    xg_tensor *w = xg_randn(t, xg_shape4(2, 3, 1, 1), &rng);
    xg_tensor *score = xg_pick(xg_global_avgpool(xg_conv2d(u, w, window1())), label);
    xg_grad_cam_options signed_map;
    memset(&signed_map, 0, sizeof signed_map);
    signed_map.keep_negative = true;
    xg_tensor *map = xg_grad_cam(score, u, NULL), *both = xg_grad_cam(score, u, &signed_map);
    int negative = 0;
    CHECK_OK(t);
    REQUIRE(xg_size(map) == 40 && xg_size(both) == 40);
    for (int i = 0; i < 40; i++) {
        int n = i / 20, p = i % 20;
        double sum = 0;
        for (int c = 0; c < 3; c++) {
            sum += (double)xg_data(w)[3 * label[n] + c] * (double)xg_data(u)[60 * n + 20 * c + p];
        }
        negative += sum < 0;
        CHECK_NEAR(xg_data(both)[i], sum / 20, TOL(1e-7, 1e-15));
        CHECK_NEAR(xg_data(map)[i], sum > 0 ? sum / 20 : 0, TOL(1e-7, 1e-15));
    }
    CHECK(negative > 5 && negative < 35);
    xg_tape_free(t);
}

/* u = relu(conv(x)), pooled, classified: the head that Grad-CAM was made for. */
typedef struct cam_net {
    xg_tensor *w, *fc, *u, *score;
} cam_net;

static cam_net cam_net_new(xg_tape *t, xg_rng *rng)
{
    static const int label[3] = { 2, 0, 1 };
    cam_net net;
    xg_tensor *x = xg_randn(t, xg_shape4(3, 2, 6, 6), rng);
    net.w = xg_randn(t, xg_shape4(5, 2, 3, 3), rng);
    net.fc = xg_randn(t, xg_shape4(3, 5, 1, 1), rng);
    net.u = xg_relu(xg_conv2d(x, net.w, window3()));
    net.score = xg_pick(xg_conv2d(xg_global_avgpool(net.u), net.fc, window1()), label);
    return net;
}

/* The classifier's weights make alpha and nothing else of the map: a loss on the map trains them
 * if and only if alpha is not held constant. */
static void test_stop_gradient_cuts_the_classifier(void)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_rng rng = xg_rng_seed(7);
    cam_net net = cam_net_new(t, &rng);
    xg_tensor *mask = random_mask(t, xg_shape4(3, 1, 6, 6), &rng);
    xg_grad_cam_options stop;
    memset(&stop, 0, sizeof stop);
    stop.stop_gradient_weights = true;
    for (int i = 0; i < 4; i++) {
        xg_guide_options o;
        memset(&o, 0, sizeof o);
        o.loss = (xg_loss)i;
        xg_tensor *full = xg_grad_cam(net.score, net.u, NULL);
        xg_tensor *held = xg_grad_cam(net.score, net.u, &stop);
        CHECK(distance(full, held) == 0);
        xg_tensor *loss = xg_guide(full, mask, &o), *loss_held = xg_guide(held, mask, &o);
        CHECK(largest(xg_grad(loss, net.fc)) > 1e-3);
        CHECK(largest(xg_grad(loss_held, net.fc)) == 0);
        CHECK(largest(xg_grad(loss_held, net.w)) > 1e-3);
    }
    CHECK_OK(t);
    xg_tape_free(t);
}

/* Where alpha depends on the features (a squared score), holding it constant also changes the
 * gradient of the convolution: to that of a map made with the same alpha as plain numbers. */
static void test_stop_gradient_equals_constant_alpha(void)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_rng rng = xg_rng_seed(8);
    cam_net net = cam_net_new(t, &rng);
    xg_tensor *mask = random_mask(t, xg_shape4(3, 1, 6, 6), &rng);
    xg_tensor *score = xg_square(net.score);
    xg_grad_cam_options stop;
    memset(&stop, 0, sizeof stop);
    stop.stop_gradient_weights = true;
    xg_tensor *alpha = xg_mean_to(xg_grad(score, net.u), xg_shape4(3, 5, 1, 1));
    xg_tensor *numbers = xg_leaf(t, xg_shape4(3, 5, 1, 1), xg_data(alpha));
    xg_tensor *by_hand = xg_relu(xg_sum_to(xg_mul(numbers, net.u), xg_shape4(3, 1, 6, 6)));
    xg_guide_options o;
    memset(&o, 0, sizeof o);
    o.loss = XG_LOSS_RRR;
    o.raw = true;                                    /* depends on the map's scale, as alpha does */
    xg_tensor *want = xg_grad(xg_guide(by_hand, mask, &o), net.w);
    xg_tensor *held = xg_grad(xg_guide(xg_grad_cam(score, net.u, &stop), mask, &o), net.w);
    xg_tensor *full = xg_grad(xg_guide(xg_grad_cam(score, net.u, NULL), mask, &o), net.w);
    CHECK_NEAR(distance(held, want) / largest(want), 0, TOL(1e-6, 1e-14));
    CHECK(distance(full, want) > 0.1 * largest(want));
    CHECK_OK(t);
    xg_tape_free(t);
}

/* ---- B-cos ----------------------------------------------------------------------------------- */

/* s = barrier(d) z with d = sigmoid(v x), z = w x. The map holds d constant, x d w; its derivative
 * does not, and is that of the expression x sigmoid(v x) w. */
static void test_bcos_map_by_hand(void)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_rng rng = xg_rng_seed(9);
    xg_shape row = xg_shape4(1, 3, 1, 4), mask_row = xg_shape4(1, 1, 1, 4);
    xg_tensor *x = xg_randn(t, row, &rng), *v = xg_randn(t, row, &rng), *w = xg_randn(t, row, &rng);
    xg_tensor *mask = random_mask(t, mask_row, &rng);
    xg_tensor *score = xg_mul(xg_barrier(xg_sigmoid(xg_dot(v, x))), xg_dot(w, x));
    xg_tensor *map = xg_bcos_map(score, x);
    xg_tensor *want = xg_sum_to(xg_mul(x, xg_mul(xg_sigmoid(xg_dot(v, x)), w)), mask_row);
    CHECK_NEAR(distance(map, want), 0, TOL(1e-6, 1e-15));
    CHECK_NEAR(map_sum(map, 0), xg_item(score), TOL(1e-6, 1e-14));
    CHECK(distance(map, xg_input_x_gradient(score, x)) > 1e-2);     /* the plain reading differs  */

    xg_guide_options o;
    memset(&o, 0, sizeof o);
    o.loss = XG_LOSS_RRR;
    o.raw = true;                                                   /* depends on the map's scale */
    xg_tensor *at[3], *g[3], *g_want[3];
    at[0] = v; at[1] = w; at[2] = x;
    xg_grads(xg_guide(map, mask, &o), NULL, at, 3, NULL, g);
    xg_grads(xg_guide(want, mask, &o), NULL, at, 3, NULL, g_want);
    for (int i = 0; i < 3; i++) CHECK_NEAR(distance(g[i], g_want[i]), 0, TOL(1e-5, 1e-13));
    CHECK(largest(g[0]) > 1e-3);                         /* the loss does reach v, through d      */
    CHECK_OK(t);
    xg_tape_free(t);
}

static xg_tensor *bcos_net(xg_scope *s, xg_tensor *x)
{
    xg_bcos_options three;
    xg_norm_options uncentred;
    memset(&three, 0, sizeof three);
    memset(&uncentred, 0, sizeof uncentred);
    three.window.kh = three.window.kw = 3;
    three.window.pad = 1;
    uncentred.uncentred = true;
    x = xg_bcos_conv(s, "conv1", xg_name(xg_bcos_input(x), "coded"), 8, &three);
    x = xg_batch_norm(s, "bn1", x, &uncentred);
    x = xg_bcos_conv(s, "conv2", x, 8, &three);
    return xg_global_avgpool(xg_bcos_conv(s, "fc", x, 4, NULL));
}

/* O10: the contributions of a B-cos net add up to the logit, at the input and at a hidden layer. */
static void test_bcos_map_is_complete(void)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_params *params = xg_params_new(NULL);
    xg_rng rng = xg_rng_seed(10);
    xg_scope s = xg_scope_new(t, params, &rng, false);
    const int label[2] = { 3, 1 };
    xg_real pixels[2 * 3 * 36];
    for (int i = 0; i < 216; i++) pixels[i] = (xg_real)xg_rng_uniform(&rng);
    xg_tensor *x = xg_leaf(t, xg_shape4(2, 3, 6, 6), pixels);
    xg_tensor *score = xg_pick(bcos_net(&s, x), label);
    for (int i = 0; i < 2; i++) {
        xg_tensor *u = xg_find(t, i ? "bn1" : "coded"), *map = xg_bcos_map(score, u);
        for (int n = 0; n < 2; n++) {
            CHECK_NEAR(map_sum(map, n), xg_data(score)[n], TOL(1e-6, 1e-13));
        }
        CHECK(largest(map) > 1e-4);
        CHECK(distance(map, xg_input_x_gradient(score, u)) > 1e-5);
    }
    CHECK_OK(t);
    xg_params_free(params);
    xg_tape_free(t);
}

/* ---- guided backpropagation and deconvnet ---------------------------------------------------- */

/* x = (1, 2), a = relu(x1 - x2, x1 + x2) = (0, 3), b = relu(a1 + a2, 2 a2, -a2) = (3, 6, 0), and
 * y = b1 - b2 + b3. Backwards by the three rules:
 *                g(b)        behind relu    g(a)         behind relu    g(x)
 *   plain        1 -1  1     1 -1  0        1  -1        0 -1           -1 -1
 *   guided       1 -1  1     1  0  0        1   1        0  1            1  1
 *   deconv       1 -1  1     1  0  1        1   0        1  0            1 -1                    */
static void test_guided_and_deconv_by_hand(void)
{
    xg_tape *t = xg_tape_new(NULL);
    const xg_real x_data[2] = { 1, 2 }, w1[4] = { 1, -1, 1, 1 }, w2[6] = { 1, 1, 0, 2, 0, -1 };
    const xg_real w3[3] = { 1, -1, 1 };
    xg_tensor *x = xg_leaf(t, xg_shape4(1, 1, 1, 2), x_data);
    xg_tensor *h1 = xg_relu(xg_matmul(x, xg_leaf(t, xg_shape4(1, 1, 2, 2), w1), false, true));
    xg_tensor *h2 = xg_relu(xg_matmul(h1, xg_leaf(t, xg_shape4(1, 1, 3, 2), w2), false, true));
    xg_tensor *y = xg_dot(h2, xg_leaf(t, xg_shape4(1, 1, 1, 3), w3));
    const double plain[2] = { -1, -1 }, guided[2] = { 1, 1 }, deconv[2] = { 1, -1 };
    xg_tensor *map[3];
    map[0] = xg_gradient(y, x);
    map[1] = xg_guided_backprop(y, x);
    map[2] = xg_deconvnet(y, x);
    CHECK_OK(t);
    CHECK(xg_item(y) == -3);
    for (int i = 0; i < 2; i++) {
        CHECK_NEAR(xg_data(map[0])[i], plain[i], 0);
        CHECK_NEAR(xg_data(map[1])[i], guided[i], 0);
        CHECK_NEAR(xg_data(map[2])[i], deconv[i], 0);
    }
    xg_tape_free(t);
}

/* The same by loops, for three layers with the weights w[layer][out][in]; 4 units everywhere. */
enum { UNITS = 4, LAYERS = 3 };

static void read_back(const double *w, const double *x, int rule, double *g)
{
    double h[LAYERS + 1][UNITS], next[UNITS];
    memcpy(h[0], x, sizeof h[0]);
    for (int l = 0; l < LAYERS; l++) {
        for (int o = 0; o < UNITS; o++) {
            double sum = 0;
            for (int i = 0; i < UNITS; i++) sum += w[(l * UNITS + o) * UNITS + i] * h[l][i];
            h[l + 1][o] = sum > 0 ? sum : 0;
        }
    }
    for (int o = 0; o < UNITS; o++) g[o] = o % 2 ? -1 : 1;
    for (int l = LAYERS - 1; l >= 0; l--) {
        for (int o = 0; o < UNITS; o++) {
            bool open = rule == 2 || h[l + 1][o] > 0;
            bool wanted = rule == 0 || g[o] > 0;
            if (!open || !wanted) g[o] = 0;
        }
        for (int i = 0; i < UNITS; i++) {
            next[i] = 0;
            for (int o = 0; o < UNITS; o++) next[i] += w[(l * UNITS + o) * UNITS + i] * g[o];
        }
        memcpy(g, next, sizeof next);
    }
}

static xg_tensor *the_activation(xg_tensor *x) { return xg_relu(x); }

/* One activation (and, every second time, one weight) used in all three layers reads back like
 * three of its own: rules belong to operations on the tape, not to objects. */
static void test_reused_activation(void)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_rng rng = xg_rng_seed(11);
    const xg_real ends_data[UNITS] = { 1, -1, 1, -1 };
    for (int round = 0; round < 40; round++) {
        double w[LAYERS * UNITS * UNITS], x[UNITS], g[UNITS];
        xg_real w_data[LAYERS * UNITS * UNITS], x_data[UNITS];
        bool shared = round % 2 == 1;
        for (int i = 0; i < LAYERS * UNITS * UNITS; i++) {
            w_data[i] = shared && i >= UNITS * UNITS ? w_data[i - UNITS * UNITS]
                                                     : (xg_real)xg_rng_normal(&rng);
            w[i] = (double)w_data[i];
        }
        for (int i = 0; i < UNITS; i++) x[i] = (double)(x_data[i] = (xg_real)xg_rng_normal(&rng));
        xg_tensor *in = xg_leaf(t, xg_shape4(1, 1, 1, UNITS), x_data), *h = in;
        xg_tensor *first = xg_leaf(t, xg_shape4(1, 1, UNITS, UNITS), w_data);
        for (int l = 0; l < LAYERS; l++) {
            xg_tensor *own = xg_leaf(t, xg_shape4(1, 1, UNITS, UNITS), w_data + l * UNITS * UNITS);
            h = the_activation(xg_matmul(h, shared ? first : own, false, true));
        }
        xg_tensor *y = xg_dot(h, xg_leaf(t, xg_shape4(1, 1, 1, UNITS), ends_data));
        xg_tensor *map[3];
        map[0] = xg_gradient(y, in);
        map[1] = xg_guided_backprop(y, in);
        map[2] = xg_deconvnet(y, in);
        CHECK_OK(t);
        for (int rule = 0; rule < 3; rule++) {
            read_back(w, x, rule, g);
            const xg_real *got = xg_data(map[rule]);
            for (int i = 0; i < UNITS; i++) CHECK_NEAR(got[i], g[i], TOL(1e-5, 1e-13));
        }
        xg_tape_reset(t);
    }
    xg_tape_free(t);
}

/* ---- training through maps: derivatives to third order --------------------------------------- */

typedef enum method {
    INPUT_GRADIENT, INPUT_IXG, HIDDEN_IXG, CAM, CONTRIBUTION, GUIDED, DECONV, METHODS
} method;

typedef struct trained {
    xg_tensor *x, *mask;
    const int *label;
    method     how;
    bool       smooth, norm;
    xg_guide_options o;
} trained;

/* The loss on a map of a net whose weights are the inputs w[0..2]. */
static xg_tensor *trained_loss(xg_tensor *const *w, int count, void *user)
{
    const trained *c = (const trained *)user;
    (void)count;
    xg_tensor *z = xg_conv2d(c->x, w[0], window3());
    if (c->norm) z = xg_normalise(z, xg_shape4(1, xg_shape_of(z).c, 1, 1), 1e-5);
    xg_tensor *u = c->smooth ? xg_softplus(z) : xg_relu(z);
    z = xg_conv2d(u, w[1], window3());
    xg_tensor *v = c->smooth ? xg_tanh(z) : xg_relu(z);
    if (c->how == CONTRIBUTION) v = xg_mul(z, xg_barrier(xg_sigmoid(z)));
    xg_tensor *score = xg_pick(xg_conv2d(xg_global_avgpool(v), w[2], window1()), c->label);
    xg_tensor *map = NULL;
    switch (c->how) {
    case INPUT_GRADIENT: map = xg_gradient(score, c->x); break;
    case INPUT_IXG:      map = xg_input_x_gradient(score, c->x); break;
    case HIDDEN_IXG:     map = xg_input_x_gradient(score, u); break;
    case CAM:            map = xg_grad_cam(score, u, NULL); break;
    case CONTRIBUTION:   map = xg_bcos_map(score, c->x); break;
    case GUIDED:         map = xg_guided_backprop(score, c->x); break;
    default:             map = xg_deconvnet(score, c->x); break;
    }
    return xg_guide(map, c->mask, &c->o);
}

/* Worst error of the derivatives 1..3 by all weights, for one method and one loss. */
static double trained_error(method how, xg_loss loss, bool smooth, bool norm, uint64_t seed)
{
    static const int label[2] = { 2, 0 };
    xg_tape *t = xg_tape_new(NULL);
    xg_rng rng = xg_rng_seed(seed);
    xg_tensor *w[3];
    trained c;
    memset(&c, 0, sizeof c);
    w[0] = xg_affine(xg_randn(t, xg_shape4(4, 2, 3, 3), &rng), 0.4, 0);
    w[1] = xg_affine(xg_randn(t, xg_shape4(4, 4, 3, 3), &rng), 0.3, 0);
    w[2] = xg_randn(t, xg_shape4(3, 4, 1, 1), &rng);
    c.x = xg_randn(t, xg_shape4(2, 2, 4, 4), &rng);
    c.mask = random_mask(t, xg_shape4(2, 1, 7, 7), &rng);
    c.label = label;
    c.how = how;
    c.smooth = smooth;
    c.norm = norm;
    c.o.loss = loss;
    double worst = xg_gradcheck(trained_loss, &c, w, 3, 3, 3e-7, &rng);
    CHECK_OK(t);
    xg_tape_free(t);
    return worst;
}

/* O13. The step is smaller than the usual 1e-5: PPCE takes the logarithm of pixels near 0, where
 * central differences of a second derivative err by (step / pixel)^2. */
static void test_third_order_smooth_net(void)
{
    if (!IS_DOUBLE) SKIP("gradient checks need XG_DOUBLE");
    for (int how = 0; how <= CONTRIBUTION; how++) {
        for (int loss = 0; loss < 4; loss++) {
            CHECK_NEAR(trained_error((method)how, (xg_loss)loss, true, false, 21), 0, 1e-5);
        }
    }
}

static void test_third_order_relu_net(void)
{
    if (!IS_DOUBLE) SKIP("gradient checks need XG_DOUBLE");
    for (int how = 0; how < METHODS; how++) {
        for (int loss = 0; loss < 4; loss++) {
            CHECK_NEAR(trained_error((method)how, (xg_loss)loss, false, false, 22), 0, 1e-5);
        }
    }
}

/* Batch statistics couple the samples and have second derivatives of their own. */
static void test_third_order_batch_statistics(void)
{
    if (!IS_DOUBLE) SKIP("gradient checks need XG_DOUBLE");
    for (int how = 0; how <= CONTRIBUTION; how++) {
        CHECK_NEAR(trained_error((method)how, XG_LOSS_ENERGY, true, true, 23), 0, 1e-5);
        CHECK_NEAR(trained_error((method)how, XG_LOSS_L1, false, true, 24), 0, 1e-5);
    }
}

/* ---- integrated gradients -------------------------------------------------------------------- */

/* f_k(x) = sum q_k x^2: the gradient is linear along the path, so the midpoint rule is exact with
 * any number of steps: q_k (x^2 - b^2). */
static xg_tensor *quadratic_net(xg_scope *s, xg_tensor *x)
{
    xg_shape q = xg_shape_of(x);
    q.n = 3;
    return xg_conv2d(xg_square(x), xg_param(s, "q", q, XG_INIT_XAVIER, 1), window1());
}

static void test_path_of_a_quadratic(void)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_params *params = xg_params_new(NULL);
    xg_rng rng = xg_rng_seed(30);
    xg_scope s = xg_scope_new(t, params, &rng, false);
    const int label[2] = { 2, 1 };
    const int steps[4] = { 1, 2, 7, 0 };                 /* 0: the default, 32                    */
    xg_tensor *x = xg_randn(t, xg_shape4(2, 2, 3, 3), &rng);
    for (int i = 0; i < 12; i++) {
        xg_path_options o;
        memset(&o, 0, sizeof o);
        o.steps = steps[i % 4];
        xg_shape like_x = xg_shape_of(x), each_channel = xg_shape4(1, 2, 1, 1);
        o.baseline = i < 4 ? NULL : xg_randn(t, i < 8 ? like_x : each_channel, &rng);
        xg_tensor *map = xg_integrated_gradients(&s, quadratic_net, x, label, &o);
        CHECK_OK(t);
        CHECK(xg_op_of(map) == XG_OP_leaf);
        xg_tensor *square = xg_square(x);
        if (o.baseline) square = xg_sub(square, xg_square(o.baseline));
        const xg_real *q = xg_params_data(params, xg_params_find(params, "q"));
        for (int p = 0; p < 18; p++) {
            const xg_real *row = q + 18 * label[p / 9] + p % 9;
            const xg_real *d = xg_data(square) + 18 * (p / 9) + p % 9;
            CHECK_NEAR(xg_data(map)[p], row[0] * d[0] + row[9] * d[9], TOL(1e-5, 1e-13));
        }
    }
    xg_params_free(params);
    xg_tape_free(t);
}

/* What a test asks of the net below, through scope.user. */
typedef struct net_choice { bool norm; double dropout; bool relu; } net_choice;

static xg_tensor *path_net(xg_scope *s, xg_tensor *x)
{
    const net_choice *choice = (const net_choice *)s->user;
    xg_conv_options three;
    memset(&three, 0, sizeof three);
    three.window.kh = three.window.kw = 3;
    three.window.pad = 1;
    three.bias = true;
    x = xg_conv(s, "conv1", x, 6, &three);
    if (choice->norm) x = xg_batch_norm(s, "bn1", x, NULL);
    x = choice->relu ? xg_relu(x) : xg_tanh(x);
    if (choice->dropout > 0) x = xg_dropout(s, x, choice->dropout);
    x = xg_tanh(xg_conv(s, "conv2", x, 6, &three));
    return xg_dense(s, "fc", xg_global_avgpool(x), 3, true);
}

typedef struct path_case {
    xg_tape   *tape;
    xg_params *params;
    xg_rng     rng;
    xg_scope   scope;
    xg_tensor *x, *mask;
    net_choice choice;
} path_case;

static const int path_label[2] = { 1, 2 };

static void path_open(path_case *c, bool norm, double dropout, uint64_t seed)
{
    memset(c, 0, sizeof *c);
    c->tape = xg_tape_new(NULL);
    c->params = xg_params_new(NULL);
    c->rng = xg_rng_seed(seed);
    c->choice.norm = norm;
    c->choice.dropout = dropout;
    c->scope = xg_scope_new(c->tape, c->params, &c->rng, norm || dropout > 0);
    c->scope.user = &c->choice;
    c->x = xg_randn(c->tape, xg_shape4(2, 2, 5, 5), &c->rng);
    c->mask = random_mask(c->tape, xg_shape4(2, 1, 5, 5), &c->rng);
    path_net(&c->scope, c->x);                           /* makes the weights                     */
}

static void path_close(path_case *c)
{
    CHECK_OK(c->tape);
    xg_params_free(c->params);
    xg_tape_free(c->tape);
}

/* Completeness: the map adds up to f(x) - f(b), and halving the step quarters what is missing. */
static void test_path_is_complete(void)
{
    path_case c;
    path_open(&c, false, 0, 31);
    xg_tensor *b = xg_randn(c.tape, xg_shape_of(c.x), &c.rng);
    xg_tensor *fx = xg_pick(path_net(&c.scope, c.x), path_label);
    xg_tensor *fb = xg_pick(path_net(&c.scope, b), path_label);
    double missing[3];
    const int steps[3] = { 32, 64, 512 };
    for (int i = 0; i < 3; i++) {
        xg_path_options o;
        memset(&o, 0, sizeof o);
        o.steps = steps[i];
        o.baseline = b;
        xg_tensor *map = xg_integrated_gradients(&c.scope, path_net, c.x, path_label, &o);
        missing[i] = 0;
        for (int n = 0; n < 2; n++) {
            double whole = (double)xg_data(fx)[n] - (double)xg_data(fb)[n];
            missing[i] += fabs(map_sum(map, n) - whole);
            CHECK(fabs(whole) > 1e-2);
        }
    }
    xg_path_options o;
    memset(&o, 0, sizeof o);
    o.steps = 32;
    xg_tensor *map = xg_integrated_gradients(&c.scope, path_net, c.x, path_label, &o);
    xg_tensor *usual = xg_integrated_gradients(&c.scope, path_net, c.x, path_label, NULL);
    CHECK(distance(map, usual) == 0);                    /* 32 steps from zero are the default    */
    CHECK_NEAR(missing[2], 0, TOL(1e-5, 1e-5));
    if (IS_DOUBLE) CHECK_NEAR(missing[0] / missing[1], 4, 0.1);
    path_close(&c);
}

/* The map of `steps` steps with all of them on the tape at once. */
static xg_tensor *unstreamed(path_case *c, int steps, xg_tensor *baseline)
{
    xg_tensor *delta = baseline ? xg_sub(c->x, baseline) : c->x, *sum = NULL;
    for (int k = 0; k < steps; k++) {
        xg_tensor *point = xg_affine(delta, (k + 0.5) / steps, 0);
        if (baseline) point = xg_add(point, baseline);
        xg_rng keep = c->rng;
        xg_tensor *score = xg_pick(path_net(&c->scope, point), path_label);
        c->rng = keep;                                   /* each step sees the same dropout       */
        xg_tensor *part = xg_mul(delta, xg_grad(score, point));
        sum = sum ? xg_add(sum, part) : part;
    }
    xg_shape s = xg_shape_of(c->x);
    s.c = 1;
    return xg_affine(xg_sum_to(sum, s), 1.0 / steps, 0);
}

/* The streamed map and, pulled back through a loss on it, the gradient of every weight, against the
 * expression built in one piece. */
static void compare_with_unstreamed(path_case *c, xg_tensor *baseline, int batch, xg_loss loss)
{
    enum { STEPS = 8, MAX = 16 };
    xg_tensor *leaf[MAX], *streamed[MAX], *direct[MAX];
    int count = xg_params_leaves(c->params, c->tape, leaf, MAX);
    CHECK(count == (c->choice.norm ? 8 : 6));
    xg_path_options o;
    memset(&o, 0, sizeof o);
    o.steps = STEPS;
    o.baseline = baseline;
    o.batch = batch;
    xg_guide_options g;
    memset(&g, 0, sizeof g);
    g.loss = loss;

    uint64_t before = c->rng.state;
    xg_tensor *map = xg_integrated_gradients(&c->scope, path_net, c->x, path_label, &o);
    xg_tensor *cotangent = xg_grad(xg_guide(map, c->mask, &g), map);
    xg_integrated_gradients_vjp(&c->scope, path_net, c->x, path_label, &o, cotangent, leaf, count,
                                streamed);
    CHECK(c->rng.state == before);                       /* explaining draws nothing              */

    xg_tensor *whole = unstreamed(c, STEPS, baseline);
    CHECK_NEAR(distance(map, whole), 0, TOL(1e-6, 1e-14));
    xg_grads(xg_guide(whole, c->mask, &g), NULL, leaf, count, NULL, direct);
    for (int i = 0; i < count; i++) {
        CHECK(xg_op_of(streamed[i]) == XG_OP_leaf);
        CHECK_NEAR(distance(streamed[i], direct[i]), 0, TOL(2e-5, 1e-12));
        bool silent = !strcmp(xg_name_of(leaf[i]), "fc.bias") ||
                      (c->choice.norm && !strcmp(xg_name_of(leaf[i]), "conv1.bias"));
        if (silent) CHECK_NEAR(largest(direct[i]), 0, TOL(1e-5, 1e-12));
        else CHECK(largest(direct[i]) > 1e-4);           /* the others are really trained         */
    }
}

static void test_path_vjp(void)
{
    const int batch[5] = { 0, 1, 2, 6, 100 };        /* 4, 1, 1, 3 (the last pass: 2) and 8 steps */
    for (int i = 0; i < 8; i++) {
        path_case c;
        path_open(&c, false, 0, 40 + (uint64_t)i);
        xg_tensor *b = i < 4 ? NULL : xg_randn(c.tape, xg_shape_of(c.x), &c.rng);
        compare_with_unstreamed(&c, b, batch[i % 5], (xg_loss)(i % 4));
        path_close(&c);
    }
}

static void test_path_vjp_with_batch_statistics_and_dropout(void)
{
    for (int i = 0; i < 4; i++) {
        path_case c;
        path_open(&c, i % 2 == 1, i >= 2 ? 0.3 : 0, 50 + (uint64_t)i);
        compare_with_unstreamed(&c, NULL, 8, XG_LOSS_ENERGY);
        path_close(&c);
    }
}

/* On a tape that holds none of the weights yet, each step makes leaves of its own: they must be
 * looked up by name in every step. The gradients are those of a tape that had them before. */
static void test_path_vjp_finds_the_leaves_of_a_step(void)
{
    path_case c;
    path_open(&c, false, 0, 60);
    xg_path_options o;
    memset(&o, 0, sizeof o);
    o.steps = 3;
    xg_tensor *leaf[1], *out[1], *by_name[1], *same[1];
    CHECK(xg_params_leaves(c.params, c.tape, leaf, 1) == 6);
    xg_tensor *ones = xg_full(c.tape, xg_shape4(2, 1, 5, 5), 1);
    xg_integrated_gradients_vjp(&c.scope, path_net, c.x, path_label, &o, ones, leaf, 1, same);

    xg_tape *t = xg_tape_new(NULL);                   /* another tape: none of the weights on it  */
    xg_scope s = xg_scope_new(t, c.params, &c.rng, false);
    s.user = &c.choice;
    xg_tensor *x = xg_leaf(t, xg_shape_of(c.x), xg_data(c.x));
    xg_tensor *one = xg_full(t, xg_shape4(2, 1, 5, 5), 1);
    by_name[0] = xg_name(xg_leaf(t, xg_shape_of(leaf[0]), NULL), xg_name_of(leaf[0]));
    xg_integrated_gradients_vjp(&s, path_net, x, path_label, &o, one, by_name, 1, out);
    CHECK_OK(t);
    CHECK(largest(same[0]) > 1e-4);
    REQUIRE(xg_size(out[0]) == xg_size(same[0]));
    for (size_t i = 0; i < xg_size(out[0]); i++) CHECK(xg_data(out[0])[i] == xg_data(same[0])[i]);
    xg_tape_free(t);
    path_close(&c);
}

/* Explaining before anything else makes the weights, and only that moves the generator: what is
 * drawn next does not repeat the numbers that became weights. */
static void test_path_makes_weights(void)
{
    path_case c;
    path_open(&c, false, 0, 65);
    xg_params *fresh = xg_params_new(NULL);
    xg_scope s = xg_scope_new(c.tape, fresh, &c.rng, false);
    s.user = &c.choice;
    xg_rng start = c.rng;
    xg_tensor *map = xg_integrated_gradients(&s, path_net, c.x, path_label, NULL);
    uint64_t once = c.rng.state;
    CHECK(once != start.state);
    CHECK(xg_params_count(fresh) == xg_params_count(c.params));
    xg_tensor *again = xg_integrated_gradients(&s, path_net, c.x, path_label, NULL);
    CHECK(c.rng.state == once);
    CHECK(distance(map, again) == 0);
    xg_params_free(fresh);
    path_close(&c);
}

/* How often the network runs, and on how many samples: 7 steps of two samples, training or not. */
typedef struct passes { int count, samples; } passes;

static xg_tensor *counting_net(xg_scope *s, xg_tensor *x)
{
    passes *seen = (passes *)s->user;
    seen->count++;
    seen->samples += xg_shape_of(x).n;
    return xg_dense(s, "head", xg_global_avgpool(x), 3, true);
}

static void test_path_passes(void)
{
    const struct { int batch; bool train; int passes; } rows[] = {
        { 0, false, 2 }, { 1, false, 7 }, { 3, false, 7 }, { 6, false, 3 }, { 14, false, 1 },
        { 1000, false, 1 }, { 0, true, 7 }, { 14, true, 7 }
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        passes seen = { 0, 0 };
        path_case c;
        path_open(&c, false, 0, 66);
        c.scope.user = &seen;
        c.scope.train = rows[i].train;
        xg_path_options o;
        memset(&o, 0, sizeof o);
        o.steps = 7;
        o.batch = rows[i].batch;
        xg_integrated_gradients(&c.scope, counting_net, c.x, path_label, &o);
        CHECK(seen.count == rows[i].passes && seen.samples == 14);
        path_close(&c);
    }
}

/* Steps of one picture that pass together take the first layer's input gradient once, for their sum:
 * seven of its eight products less. */
static void test_path_sums_before_the_first_layer(void)
{
    double flops[2];
    path_case c;
    path_open(&c, false, 0, 67);
    xg_tensor *map[2], *x = xg_randn(c.tape, xg_shape4(1, 2, 5, 5), &c.rng);
    for (int i = 0; i < 2; i++) {
        xg_path_options o;
        memset(&o, 0, sizeof o);
        o.steps = 8;
        o.batch = i ? 8 : 1;
        double before = xg_tape_stats(c.tape).flops;
        map[i] = xg_integrated_gradients(&c.scope, path_net, x, path_label, &o);
        flops[i] = xg_tape_stats(c.tape).flops - before;
    }
    CHECK_NEAR(distance(map[0], map[1]), 0, TOL(1e-6, 1e-14));
    CHECK_NEAR(flops[0] - flops[1], 7 * 2.0 * 25 * 9 * 2 * 6, 0);
    path_close(&c);
}

/* Constant memory: the same peak at 8 and at 512 steps, for the map and for its second pass. */
static void test_path_peak(void)
{
    size_t peak[2][2];
    for (int i = 0; i < 4; i++) {
        enum { MAX = 16 };
        xg_tensor *leaf[MAX], *out[MAX];
        path_case c;
        path_open(&c, i >= 2, 0, 70);
        size_t before = xg_tape_stats(c.tape).bytes;
        int count = xg_params_leaves(c.params, c.tape, leaf, MAX);
        xg_path_options o;
        memset(&o, 0, sizeof o);
        o.steps = i % 2 ? 512 : 8;
        xg_tensor *map = xg_integrated_gradients(&c.scope, path_net, c.x, path_label, &o);
        peak[i % 2][0] = xg_tape_stats(c.tape).peak;
        CHECK(xg_tape_stats(c.tape).bytes < before + 4096);          /* the map, and nothing else */
        xg_integrated_gradients_vjp(&c.scope, path_net, c.x, path_label, &o, map, leaf, count, out);
        peak[i % 2][1] = xg_tape_stats(c.tape).peak;
        if (i % 2) CHECK(peak[0][0] == peak[1][0] && peak[0][1] == peak[1][1]);
        path_close(&c);
    }
    CHECK(peak[0][0] > 0 && peak[0][1] > peak[0][0]);
}

/* The passes of an explanation leave no trace in the running statistics. */
static void test_path_leaves_running_statistics_alone(void)
{
    xg_real mean[2][6];
    for (int i = 0; i < 2; i++) {
        path_case c;
        xg_optim sgd;
        path_open(&c, true, 0, 80);
        memset(&sgd, 0, sizeof sgd);
        if (i) xg_integrated_gradients(&c.scope, path_net, c.x, path_label, NULL);
        xg_tensor *loss = xg_cross_entropy(path_net(&c.scope, c.x), path_label, NULL);
        CHECK(xg_optim_step(&sgd, c.params, loss) == XG_ERR_OK);
        int at = xg_params_find(c.params, "bn1.running_mean");
        REQUIRE(at >= 0);
        memcpy(mean[i], xg_params_data(c.params, at), sizeof mean[i]);
        path_close(&c);
    }
    CHECK(!memcmp(mean[0], mean[1], sizeof mean[0]));
    CHECK(mean[0][0] != 0);
}

/* ---- errors ---------------------------------------------------------------------------------- */

static void path_refused(path_case *c, xg_net net, xg_tensor *x, const int *label,
                         const xg_path_options *o, xg_code code)
{
    xg_tensor *leaf[1], *out[1];
    size_t nodes = xg_tape_stats(c->tape).nodes;
    CHECK(isnan(xg_item(xg_integrated_gradients(&c->scope, net, x, label, o))));
    CHECK_ERROR(xg_tape_error(c->tape), code);
    CHECK(xg_tape_stats(c->tape).nodes <= nodes + 2);    /* nothing of the steps is left          */
    xg_clear_error(c->tape);
    CHECK(xg_params_leaves(c->params, c->tape, leaf, 1) > 0);
    xg_tensor *cotangent = xg_leaf(c->tape, xg_shape4(2, 1, 5, 5), NULL);
    xg_integrated_gradients_vjp(&c->scope, net, x, label, o, cotangent, leaf, 1, out);
    CHECK_ERROR(xg_tape_error(c->tape), code);
    CHECK(isnan(xg_item(out[0])));
    xg_clear_error(c->tape);
    CHECK(isnan(xg_item(out[0])));                   /* nothing half-summed comes back to life    */
    xg_clear_error(c->tape);
}

static xg_tensor *failing_net(xg_scope *s, xg_tensor *x)
{
    return xg_add(path_net(s, x), xg_leaf(s->tape, xg_shape4(7, 7, 7, 7), NULL));
}

static void test_path_errors(void)
{
    path_case c;
    path_open(&c, false, 0, 90);
    const int wrong[2] = { 0, 3 };
    xg_tape *other = xg_tape_new(NULL);
    xg_path_options o, defaults;
    memset(&defaults, 0, sizeof defaults);
    path_refused(&c, NULL, c.x, path_label, NULL, XG_ERR_ARGUMENT);
    path_refused(&c, path_net, c.x, NULL, NULL, XG_ERR_ARGUMENT);
    path_refused(&c, path_net, c.x, wrong, NULL, XG_ERR_ARGUMENT);
    path_refused(&c, failing_net, c.x, path_label, NULL, XG_ERR_SHAPE);
    xg_tensor *elsewhere = xg_leaf(other, xg_shape_of(c.x), NULL);
    path_refused(&c, path_net, elsewhere, path_label, NULL, XG_ERR_TAPE);
    path_refused(&c, path_net, NULL, path_label, NULL, XG_ERR_TAPE);
    o = defaults;
    o.steps = -1;
    path_refused(&c, path_net, c.x, path_label, &o, XG_ERR_ARGUMENT);
    o = defaults;
    o.batch = -1;
    path_refused(&c, path_net, c.x, path_label, &o, XG_ERR_ARGUMENT);
    o = defaults;
    o.baseline = xg_leaf(c.tape, xg_shape4(2, 2, 4, 5), NULL);
    path_refused(&c, path_net, c.x, path_label, &o, XG_ERR_SHAPE);
    o.baseline = elsewhere;
    path_refused(&c, path_net, c.x, path_label, &o, XG_ERR_TAPE);

    xg_tensor *leaf[1], *out[1];
    CHECK(xg_params_leaves(c.params, c.tape, leaf, 1) > 0);
    xg_integrated_gradients_vjp(&c.scope, path_net, c.x, path_label, NULL, c.x, leaf, 1, out);
    CHECK_ERROR(xg_tape_error(c.tape), XG_ERR_SHAPE);    /* a cotangent like x, not like the map  */
    xg_clear_error(c.tape);
    xg_tensor *single = xg_leaf(c.tape, xg_shape4(1, 2, 5, 5), NULL);
    o = defaults;
    o.baseline = c.x;                                    /* larger than x                         */
    CHECK(isnan(xg_item(xg_integrated_gradients(&c.scope, path_net, single, path_label, &o))));
    CHECK_ERROR(xg_tape_error(c.tape), XG_ERR_SHAPE);
    xg_clear_error(c.tape);
    xg_tape_free(other);
    path_close(&c);
}

/* Memory may run out anywhere on the way: an error as any other, and nothing half-summed. */
static void test_path_out_of_memory(void)
{
    enum { MOST = 1 << 20 };
    char *memory = (char *)malloc(MOST);
    path_case c;
    int failed = 0, passed = 0;
    REQUIRE(memory != NULL);
    path_open(&c, true, 0, 91);
    for (size_t bytes = 4096; bytes <= MOST; bytes += bytes < 200000 ? 1216 : 65536) {
        xg_config config;
        xg_tensor *leaf[1], *out[1];
        memset(&config, 0, sizeof config);
        config.fixed = memory;
        config.fixed_bytes = bytes;
        xg_tape *t = xg_tape_new(&config);
        if (!t) continue;
        xg_scope s = xg_scope_new(t, c.params, &c.rng, true);
        s.user = &c.choice;
        xg_tensor *x = xg_leaf(t, xg_shape_of(c.x), xg_data(c.x));
        xg_tensor *map = xg_integrated_gradients(&s, path_net, x, path_label, NULL);
        leaf[0] = xg_param(&s, "conv1.weight", xg_shape4(6, 2, 3, 3), XG_INIT_ZERO, 1);
        xg_integrated_gradients_vjp(&s, path_net, x, path_label, NULL, map, leaf, 1, out);
        bool good = !xg_failed(t);
        if (!good) CHECK_ERROR(xg_tape_error(t), XG_ERR_MEMORY);
        xg_clear_error(t);
        CHECK(good == isfinite(xg_item(out[0])));
        if (good) passed++;
        else failed++;
        xg_tape_free(t);
    }
    CHECK(failed > 20 && passed > 0);
    path_close(&c);
    free(memory);
}

/* Tensors of two tapes, or of none, end in an error and not in a crash. */
static void test_gradient_errors(void)
{
    xg_tape *t = xg_tape_new(NULL), *other = xg_tape_new(NULL);
    xg_tensor *x = xg_leaf(t, xg_shape4(1, 2, 2, 2), NULL), *y = xg_sum(x);
    xg_tensor *z = xg_leaf(other, xg_shape4(1, 2, 2, 2), NULL);
    xg_tensor *(*const method_of[5])(xg_tensor *, xg_tensor *) = {
        xg_gradient, xg_input_x_gradient, xg_bcos_map, xg_guided_backprop, xg_deconvnet };
    for (int i = 0; i < 5; i++) {
        CHECK(isnan(xg_item(method_of[i](y, z))));
        CHECK_ERROR(xg_tape_error(t), XG_ERR_TAPE);
        xg_tape_reset(t);
        xg_clear_error(other);
        x = xg_leaf(t, xg_shape4(1, 2, 2, 2), NULL);
        y = xg_sum(x);
        CHECK(isnan(xg_item(method_of[i](y, NULL))));
        CHECK_ERROR(xg_tape_error(t), XG_ERR_ARGUMENT);
        xg_clear_error(t);
    }
    CHECK(isnan(xg_item(xg_grad_cam(y, z, NULL))));
    CHECK_ERROR(xg_tape_error(t), XG_ERR_TAPE);
    xg_tape_free(other);
    xg_tape_free(t);
}

/* ---- post-processing ------------------------------------------------------------------------- */

static xg_post post_of(bool positive, bool normalise, int h, int w)
{
    xg_post post = { positive, normalise, h, w };
    return post;
}

/* First the clamp, then the maximum, then the interpolation: any other order gives other numbers.
 */
static void test_post_order(void)
{
    xg_tape *t = xg_tape_new(NULL);
    const xg_real data[8] = { -8, 2, 0, 4,   0, 0, 0, 0 };
    xg_tensor *map = xg_leaf(t, xg_shape4(2, 1, 1, 4), data);
    const xg_post cases[4] = { post_of(true, false, 0, 0), post_of(false, true, 0, 0),
                               post_of(true, true, 0, 0), post_of(true, true, 1, 2) };
    const double want[4][4] = { { 0, 2, 0, 4 }, { -1, 0.25, 0, 0.5 }, { 0, 0.5, 0, 1 },
                                { 0.25, 0.5, 0, 0 } };
    for (int i = 0; i < 4; i++) {
        xg_tensor *y = xg_postprocess(map, cases + i);
        int width = xg_shape_of(y).w;
        CHECK(width == (i == 3 ? 2 : 4));
        for (int p = 0; p < width; p++) {
            CHECK_NEAR(xg_data(y)[p], want[i][p], 0);
            CHECK(xg_data(y)[width + p] == 0);           /* a sample of zeros stays               */
        }
    }
    CHECK(xg_postprocess(map, NULL) == map);
    CHECK_OK(t);
    xg_tape_free(t);
}

/* Half-pixel centres: [0, 4] up-sampled to four is 0, 1, 3, 4. */
static void test_post_upsampling(void)
{
    xg_tape *t = xg_tape_new(NULL);
    const xg_real data[2] = { 0, 4 };
    const double want[4] = { 0, 1, 3, 4 };
    xg_post post = post_of(false, false, 3, 4);
    xg_tensor *y = xg_postprocess(xg_leaf(t, xg_shape4(1, 1, 1, 2), data), &post);
    REQUIRE(xg_size(y) == 12);
    for (int i = 0; i < 12; i++) CHECK_NEAR(xg_data(y)[i], want[i % 4], TOL(1e-6, 1e-15));
    CHECK_OK(t);
    xg_tape_free(t);
}

/* Its derivative: g_p/m - [p in T] sign(A_p)/|T| (sum_q g_q A_q)/m^2, T the places of the maximum;
 * and g_p itself for a map of zeros. */
static void test_post_gradient(void)
{
    enum { COUNT = 6, MAPS = 4 };
    xg_tape *t = xg_tape_new(NULL);
    const xg_real maps[MAPS][COUNT] = { { 1, -3, 2, 0, (xg_real)0.5, -1 }, { 2, -2, 1, 0, 2, -1 },
                                        { 0, 0, 0, 0, 0, 0 }, { -1, -1, -1, -1, -1, -1 } };
    const xg_real g[COUNT] = { 3, 1, -2, 5, 4, -1 };
    for (int k = 0; k < MAPS; k++) {
        xg_tensor *map = xg_leaf(t, xg_shape4(1, 1, 2, 3), maps[k]), *out;
        xg_tensor *seed = xg_leaf(t, xg_shape4(1, 1, 2, 3), g);
        xg_post post = post_of(false, true, 0, 0);
        xg_grads(xg_postprocess(map, &post), seed, &map, 1, NULL, &out);
        double m = 0, along = 0, ties = 0;
        for (int i = 0; i < COUNT; i++) m = fmax(m, fabs((double)maps[k][i]));
        for (int i = 0; i < COUNT; i++) {
            ties += fabs((double)maps[k][i]) >= m;
            along += (double)(g[i] * maps[k][i]);
        }
        for (int i = 0; i < COUNT; i++) {
            double a = (double)maps[k][i], want = (double)g[i];
            bool winner = fabs(a) >= m;
            if (m > 0) want = want / m - (winner ? (a > 0 ? 1 : -1) / ties * along / (m * m) : 0);
            CHECK_NEAR(xg_data(out)[i], want, TOL(1e-6, 1e-14));
        }
    }
    CHECK_OK(t);
    xg_tape_free(t);
}

static void test_post_errors(void)
{
    xg_tape *t = xg_tape_new(NULL);
    const xg_post bad[4] = { post_of(false, false, 4, 0), post_of(false, false, 0, 4),
                             post_of(true, true, -4, -4), post_of(false, false, 4, -1) };
    xg_post fine = post_of(true, true, 0, 0);
    xg_tensor *map = xg_leaf(t, xg_shape4(1, 1, 2, 2), NULL);
    for (int i = 0; i < 4; i++) {
        CHECK(isnan(xg_item(xg_postprocess(map, bad + i))));
        CHECK_ERROR(xg_tape_error(t), XG_ERR_ARGUMENT);
        xg_clear_error(t);
    }
    CHECK(isnan(xg_item(xg_postprocess(xg_leaf(t, xg_shape4(1, 3, 2, 2), NULL), &fine))));
    CHECK_ERROR(xg_tape_error(t), XG_ERR_SHAPE);
    CHECK(xg_postprocess(map, NULL) != map && isnan(xg_item(xg_postprocess(map, NULL))));
    CHECK(xg_postprocess(NULL, NULL) != NULL && xg_postprocess(NULL, &fine) != NULL);
    xg_tape_free(t);
}

/* ---- does it train? -------------------------------------------------------------------------- */

/* Forty steps on the Energy of the input-times-gradient map alone move its energy into the masks.
 */
static void test_guidance_moves_the_energy(void)
{
    enum { N = 4, AREA = 64 };
    xg_tape *t = xg_tape_new(NULL);
    xg_params *params = xg_params_new(NULL);
    xg_rng rng = xg_rng_seed(100);
    xg_optim adam;
    memset(&adam, 0, sizeof adam);
    adam.kind = XG_ADAM;
    adam.lr = 0.01;
    const int label[N] = { 0, 1, 2, 3 };
    xg_real pixels[N * 3 * AREA], mask[N * AREA];
    for (int i = 0; i < N * 3 * AREA; i++) pixels[i] = (xg_real)xg_rng_normal(&rng);
    memset(mask, 0, sizeof mask);
    for (int n = 0; n < N; n++) {
        xg_box box;
        box.x0 = n; box.x1 = n + 4; box.y0 = 1; box.y1 = 5;
        xg_mask_box(mask + n * AREA, 8, 8, box, 8, 8, 0);
    }
    double first = 0, last = 0;
    for (int step = 0; step < 40; step++) {
        xg_mark mark = xg_tape_mark(t);
        xg_scope s = xg_scope_new(t, params, &rng, true);
        xg_tensor *x = xg_leaf(t, xg_shape4(N, 3, 8, 8), pixels);
        xg_tensor *map = xg_input_x_gradient(xg_pick(relu_net(&s, x), label), x);
        double epg = 0;
        for (int n = 0; n < N; n++) {
            epg += xg_epg(xg_data(map) + n * AREA, mask + n * AREA, AREA) / (double)N;
        }
        if (step == 0) first = epg;
        last = epg;
        xg_tensor *loss = xg_guide(map, xg_leaf(t, xg_shape4(N, 1, 8, 8), mask), NULL);
        CHECK_NEAR(xg_item(loss), (double)N * (1 - epg), TOL(1e-5, 1e-12));
        CHECK(xg_optim_step(&adam, params, loss) == XG_ERR_OK);
        xg_tape_release(t, mark);
    }
    CHECK_OK(t);
    CHECK(first < 0.5);
    CHECK(last > first + 0.2);
    xg_params_free(params);
    xg_tape_free(t);
}

TEST_MAIN(
    TEST(test_gradient_of_a_linear_net)
    TEST(test_gradient_of_something_else)
    TEST(test_bias_free_net)
    TEST(test_bias_at_the_head)
    TEST(test_batch_equals_singles)
    TEST(test_grad_cam_closed_form)
    TEST(test_stop_gradient_cuts_the_classifier)
    TEST(test_stop_gradient_equals_constant_alpha)
    TEST(test_bcos_map_by_hand)
    TEST(test_bcos_map_is_complete)
    TEST(test_guided_and_deconv_by_hand)
    TEST(test_reused_activation)
    TEST(test_third_order_smooth_net)
    TEST(test_third_order_relu_net)
    TEST(test_third_order_batch_statistics)
    TEST(test_path_of_a_quadratic)
    TEST(test_path_is_complete)
    TEST(test_path_vjp)
    TEST(test_path_vjp_with_batch_statistics_and_dropout)
    TEST(test_path_vjp_finds_the_leaves_of_a_step)
    TEST(test_path_makes_weights)
    TEST(test_path_passes)
    TEST(test_path_sums_before_the_first_layer)
    TEST(test_path_peak)
    TEST(test_path_leaves_running_statistics_alone)
    TEST(test_path_errors)
    TEST(test_path_out_of_memory)
    TEST(test_gradient_errors)
    TEST(test_post_order)
    TEST(test_post_upsampling)
    TEST(test_post_gradient)
    TEST(test_post_errors)
    TEST(test_guidance_moves_the_energy)
)
